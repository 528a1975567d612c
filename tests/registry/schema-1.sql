CREATE TABLE orgs (
	id INTEGER NOT NULL, 
	name VARCHAR(96) NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
CREATE TABLE tokens (
	id INTEGER NOT NULL, 
	org_id INTEGER NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	hint VARCHAR(16) NOT NULL, 
	can_write BOOLEAN NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE, 
	UNIQUE (sha256)
);
CREATE TABLE repos (
	id INTEGER NOT NULL, 
	org_id INTEGER NOT NULL, 
	name VARCHAR(96) NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(org_id) REFERENCES orgs (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX repo_name ON repos (org_id, name);
CREATE TABLE commits (
	repo_id INTEGER NOT NULL, 
	oid VARCHAR(40) NOT NULL, 
	parent_oid VARCHAR(40), 
	tree_oid VARCHAR(40) NOT NULL, 
	author VARCHAR(96) NOT NULL, 
	message VARCHAR NOT NULL, 
	created_at DATETIME NOT NULL, 
	PRIMARY KEY (repo_id, oid), 
	FOREIGN KEY(repo_id) REFERENCES repos (id) ON DELETE CASCADE
);
CREATE TABLE refs (
	repo_id INTEGER NOT NULL, 
	name VARCHAR(210) NOT NULL, 
	commit_oid VARCHAR(40) NOT NULL, 
	PRIMARY KEY (repo_id, name), 
	FOREIGN KEY(repo_id) REFERENCES repos (id) ON DELETE CASCADE
);
CREATE TABLE tree_entries (
	repo_id INTEGER NOT NULL, 
	tree_oid VARCHAR(40) NOT NULL, 
	path VARCHAR(1024) NOT NULL, 
	folder VARCHAR(1024) NOT NULL, 
	oid VARCHAR(40) NOT NULL, 
	sha256 VARCHAR(64), 
	size BIGINT, 
	lfs BOOLEAN NOT NULL, 
	PRIMARY KEY (repo_id, tree_oid, path), 
	FOREIGN KEY(repo_id) REFERENCES repos (id) ON DELETE CASCADE
);
CREATE INDEX tree_folder ON tree_entries (repo_id, tree_oid, folder, path);
CREATE INDEX tree_content ON tree_entries (sha256);
PRAGMA user_version = 1;
