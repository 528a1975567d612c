#!/usr/bin/env bash
# The browser that tests look at the registry's pages with. Where there is none and apt is there, installs Debian's,
# and the typeface the pages ask for first. Does nothing where there is one; CHROMIUM names another.
set -euo pipefail
for name in "${CHROMIUM:-chromium}" chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null; then
    echo "No Chromium here and no apt-get to install it: install it, or name one in CHROMIUM." >&2
    exit 1
fi
root=()
if [ "$(id -u)" != 0 ]; then root=(sudo -n); fi
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update -qq
"${root[@]}" apt-get install -y -qq --no-install-recommends chromium fonts-inter >/dev/null
