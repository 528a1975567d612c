"""`khub engine serve --ray`: the same server as replicas of a Ray Serve application, behind one address."""
