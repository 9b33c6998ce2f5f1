#!/usr/bin/env bash
# Runs every test and ends with a line per skipped test and why. A skip that is not expected here is a failure.
set -uo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2046  # no word is one argument each
cargo test --release --workspace --locked $(tools/features.sh) -- --show-output 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

# Tests that need data beside the repository, a GPU or a library say `skipped: NAME because REASON`.
skips=$({ grep -ohE 'skipped: .+ because .+' "$log"; sed -nE 's/^test (.+) \.\.\. ignored, (.+)$/skipped: \1 because it \2/p' "$log"; } | sort -u)
unexpected=""
echo
if [ -z "$skips" ]; then
    echo "skipped tests: none"
else
    echo "skipped tests:"
    while IFS= read -r skip; do
        echo "  $skip"
        case "$skip" in
            *"because it needs a GPU" | *"because ffmpeg's libraries are not installed") ;;
            *"because the command ffmpeg is not installed" | *"because Open MPI is not installed" | *"because c++ is not installed") ;;
            *"because ../shared/"*) [ -d ../shared ] && unexpected+="  $skip"$'\n' ;;
            *) unexpected+="  $skip"$'\n' ;;
        esac
    done <<<"$skips"
fi
if [ -n "$unexpected" ]; then
    printf 'error: these tests should have run here:\n%s' "$unexpected" >&2
    exit 1
fi
passed=$(sed -nE 's/^test result: .* ([0-9]+) passed.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
failed=$(sed -nE 's/^test result: .* ([0-9]+) failed.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
echo "$passed passed, $failed failed, $(grep -c . <<<"$skips") skipped"
exit "$status"
