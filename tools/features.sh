#!/usr/bin/env bash
# What this machine can build, as cargo's arguments: video files are read where ffmpeg's libraries (and libclang, which reads
# their headers) are installed.
libraries=(libavcodec libavformat libavutil libavfilter libavdevice libswscale libswresample)
has_clang() {
    [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
        compgen -G '/usr/lib/*/libclang*.so*' >/dev/null
}
if command -v pkg-config >/dev/null && pkg-config --exists "${libraries[@]}" && has_clang; then
    echo "--features video"
fi
