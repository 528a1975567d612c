"""Put packages of one kernel, built apart, into one: `python ci/merge.py OUT PART ...`.

Every PART is a folder that `khub build --out` wrote, with one variant or more. The variants are hashed again
on the way and the index is written last. The same variant in two parts has to be the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_matrix.package import check_files, file_entries, install_variant, write_index
from hub_loader.errors import IntegrityError, KernelHubError, UsageError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the package folder to write")
    parser.add_argument("parts", type=Path, nargs="+", help="folders that khub build wrote")
    args = parser.parse_args()
    try:
        count = merge(args.out, args.parts)
    except KernelHubError as error:
        print(f"merge: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: {count} variants")
    return 0


def merge(out: Path, parts: list[Path]) -> int:
    """Copy every variant of `parts` into `out` and index them; returns how many there are."""
    origin: dict[str, Path] = {}
    for part in parts:
        folders = sorted(path for path in part.glob("build/*") if not path.name.startswith("."))
        if not folders:
            raise UsageError(f"{part} holds no build/<variant> folder: name a folder that khub build wrote")
        for folder in folders:
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            check_files(files, str(folder))
            if folder.name in origin and file_entries(folder) != file_entries(origin[folder.name]):
                raise IntegrityError(f"{folder} and {origin[folder.name]} differ: build the variant once")
            origin[folder.name] = folder
            install_variant(files, folder.name, out)
    return len(write_index(out).variants)


if __name__ == "__main__":
    sys.exit(main())
