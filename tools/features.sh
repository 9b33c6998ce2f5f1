#!/usr/bin/env bash
# What this machine can build, as cargo's arguments: video files are read where ffmpeg's libraries (and libclang, which reads
# their headers) are installed, several processes train together where Open MPI is.
libraries=(libavcodec libavformat libavutil libavfilter libavdevice libswscale libswresample)
has_clang() {
    [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
        compgen -G '/usr/lib/*/libclang*.so*' >/dev/null
}
features=()
if has_clang; then
    command -v pkg-config >/dev/null && pkg-config --exists "${libraries[@]}" && features+=(video)
    command -v mpicc >/dev/null && command -v mpirun >/dev/null && features+=(mpi)
fi
[ ${#features[@]} -eq 0 ] || echo "--features $(IFS=, && echo "${features[*]}")"
