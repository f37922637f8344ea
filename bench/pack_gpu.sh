#!/usr/bin/env bash
# Make a folder with all that bench/gpu.py needs on a GPU machine without network, about 50 MB for CIFAR-10.
#   bash bench/pack_gpu.sh FOLDER ARCHIVE          here; it packs the files of the working tree
#   bash FOLDER/run.sh OUT SECONDS [OPTION ...]    there; the same command resumes
# ABSENT names the Python packages that the machine lacks (PyTorch and torchvision should be there), PYTHON its version.
set -euo pipefail
folder=${1:?folder} archive=${2:?archive of images}
absent=${ABSENT-annotated-types faiss-cpu pydantic pydantic_core ruamel.yaml typing-inspection typing_extensions}
cd "$(dirname "$0")/.."
mkdir -p "$folder/conr" "$folder/wheels"
git ls-files -z conr bench tests/numerics pyproject.toml | xargs -0 cp --parents -t "$folder/conr"
git describe --always --abbrev=12 '--exclude=*' --dirty=+ > "$folder/conr/COMMIT"
cp "$archive" "$folder/images.tar.gz"
platforms=$(printf -- '--platform manylinux_2_%s_x86_64 ' 28 27 17)
for package in $absent; do
  # shellcheck disable=SC2046,SC2086 # one option a word
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "${PYTHON:-3.12}" $platforms \
    --platform manylinux2014_x86_64 -d "$folder/wheels" "$(grep -i "^$package==" constraints.txt)"
done
cat > "$folder/run.sh" <<'RUN'
#!/usr/bin/env bash
# usage: run.sh OUT SECONDS [OPTION of bench/gpu.py ...]; what the next call resumes from is in STATE, outside the folder
set -eu
here=$(cd "$(dirname "$0")" && pwd) out=$1 seconds=$2; shift 2
state=${STATE:-${TMPDIR:-/tmp}/conr-gpu} wheels=$(ls "$here"/wheels/*.whl 2> /dev/null || true)
if [ ! -d "$state/site" ]; then
  rm -rf "$state/unfinished" && mkdir -p "$state/unfinished"
  [ -z "$wheels" ] || python3 -m pip install -q --no-index --no-deps --no-compile --target "$state/unfinished" $wheels
  mv "$state/unfinished" "$state/site"
fi
export PYTHONUNBUFFERED=1 PYTHONPATH="$state/site:$here/conr"
exec python3 "$here/conr/bench/gpu.py" --archive "$here/images.tar.gz" --out "$out" --state "$state" --seconds "$seconds" "$@"
RUN
size=$(du -sm "$folder" | cut -f1)
echo "$folder: $size MB"
[ "$size" -le 64 ] || { echo "more than 64 MB: take fewer images" >&2; exit 1; }
