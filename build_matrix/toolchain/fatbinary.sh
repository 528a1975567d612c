#!/bin/sh
# Stands where nvcc looks for `fatbinary` in a toolkit whose compiler is older than some devices it builds for.
# Asked for them, it assembles the PTX that nvcc made with a newer ptxas and packs all with a newer fatbinary,
# which describes such code as the toolkits that know the devices do. All other calls go to nvcc's own.
#   --assemble=XX   add code for sm_XX
#   --from-ptx=XX   out of the PTX of compute_XX
#   --keep-ptx      the PTX itself is wanted too
set -fu
here=${0%/*}
archs='' virtual='' keep='' ptx='' options=''
for word do
    shift
    case $word in
        --assemble=*) archs="$archs ${word#*=}"; continue ;;
        --from-ptx=*) virtual=${word#*=}; continue ;;
        --keep-ptx) keep=yes; continue ;;
        --cmdline=*) options=${word#*=} ;;  # what nvcc calls its own ptxas with
    esac
    set -- "$@" "$word"
done
[ -n "$archs" ] || exec "$here/own/fatbinary" "$@"

for word do
    shift
    case $word in
        "--image3=kind=ptx,sm=$virtual,file="*)
            ptx=${word##*,file=}
            [ -n "$keep" ] || continue
            ;;
    esac
    set -- "$@" "$word"
done
if [ -z "$ptx" ]; then
    echo "fatbinary: error: nvcc made no PTX of compute_$virtual to assemble for$archs" >&2
    exit 1
fi
# nvcc does not know of these files, so it would not remove them.
remove() { for arch in $archs; do rm -f "${ptx%.ptx}.sm_$arch.newer.cubin"; done; }
trap remove EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for arch in $archs; do
    cubin=${ptx%.ptx}.sm_$arch.newer.cubin
    # shellcheck disable=SC2086  # the options are words
    "$here/newer/ptxas" "-arch=sm_$arch" -m64 $options "$ptx" -o "$cubin" || {
        status=$?
        echo "fatbinary: error: the PTX of compute_$virtual cannot be assembled for sm_$arch" >&2
        exit "$status"
    }
    set -- "$@" "--image3=kind=elf,sm=$arch,file=$cubin"
done
# The compression that every driver of this CUDA reads; the newer default is not.
"$here/newer/fatbinary" --compress-mode=speed "$@"
