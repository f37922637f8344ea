#!/usr/bin/env bash
# Build the images of docker/Dockerfile, and try them, where there is neither a container engine nor a registry.
#
#   docker/build-and-try.sh [--target pipeline|runtime] [--keep]
#
# For Debian 12 as root, with the packages of Debian and PyPI within reach; 25 GB of disk (3 GB for runtime alone). The
# base image is a stand-in of Debian's own Python. Every container has user 1000, a read-only root, no network and no
# capabilities. The projects are those of the last commit, the images those of the working tree.
# --target: one image only; runtime assigns images in the project that pipeline has left (--keep).
# --keep: leave images and projects in CONR_IMAGES (/var/tmp/conr-images), as a cache of the next call.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=(pipeline runtime) keep="" failed=0
while [ $# -gt 0 ]; do
  case $1 in
    --target) targets=("${2:?pipeline or runtime}"); shift 2 ;;
    --keep) keep=yes; shift ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
work=${CONR_IMAGES:-/var/tmp/conr-images} base=localhost/conr-base certificates=/etc/ssl/certs/ca-certificates.crt
photos=$work/try/photos project=$work/try/project digits=$work/try/digits
export CONTAINERS_STORAGE_CONF=$work/storage.conf CONTAINERS_CONF=$work/containers.conf TMPDIR=$work/tmp

step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

check() { # TEXT COMMAND…: a failure counts, and the next check follows
  local text=$1
  shift
  if "$@" >"$work/check.log" 2>&1; then
    echo "ok    $text"
  else
    failed=$((failed + 1))
    echo "FAIL  $text"
    tail -n 15 "$work/check.log" | sed 's/^/      /'
  fi
}

is_not() { ! "$@"; }

remove() {
  podman rm --all --force --time 0 >/dev/null 2>&1 || true
  [ -n "$keep" ] || { podman rmi --all --force >/dev/null 2>&1 || true; rm -rf "$work"; }
}

prepare_tools() {
  if ! { command -v buildah && command -v podman && command -v runc && command -v mmdebstrap; } >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah podman runc mmdebstrap
  fi
  mkdir -p "$TMPDIR"
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/store" "$work/run" \
    >"$CONTAINERS_STORAGE_CONF"
  printf '%s\n' '[containers]' 'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]' \
    '[engine]' 'runtime = "runc"' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' >"$CONTAINERS_CONF"
}

# shellcheck disable=SC2016  # mmdebstrap expands it
make_base() { # as small as the official slim images: no manuals, no translations, no caches of apt
  mmdebstrap --quiet --variant=apt --include=usr-is-merged,python3,python3-venv \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --aptopt='Dir::Cache::pkgcache ""' --aptopt='Dir::Cache::srcpkgcache ""' \
    --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname"' bookworm "$work/base.tar"
  podman import --quiet "$work/base.tar" "$base"
  rm "$work/base.tar"
}

build() { # TARGET: this machine's certificates and settings of pip are mounted, and no part of the image
  local mounts=(--volume "$certificates:$certificates:ro")
  [ ! -f /etc/pip.conf ] || mounts+=(--volume /etc/pip.conf:/etc/pip.conf:ro)
  buildah bud --isolation chroot --network host --pull-never --format docker --layers "${mounts[@]}" \
    --build-arg "BASE_IMAGE=$base" --target "$1" -f docker/Dockerfile -t "localhost/conr-$1" .
}

create() { # IMAGE OPTION… -- COMMAND…: a container named "try", not started
  local image=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  podman rm --force --time 0 try >/dev/null 2>&1 || true
  podman create --name try --network none --no-healthcheck --read-only --read-only-tmpfs=false --tmpfs /tmp \
    --cap-drop all --security-opt no-new-privileges --user 1000:1000 --shm-size 1g --env OMP_NUM_THREADS \
    "${options[@]}" "localhost/conr-$image" "$@" >/dev/null
}

run() { # like create: the exit code is that of the command
  create "$@"
  podman start --attach try
}

end_when() { # SIGNAL FOLDER …: like run, but ended once a file has been written in FOLDER; prints the exit code
  local signal=$1 folder=$2
  shift 2
  touch "$work/started"
  create "$@"
  podman start try >/dev/null
  until [ -n "$(find "$folder" -type f -newer "$work/started" 2>/dev/null)" ]; do
    [ "$(podman inspect --format '{{.State.Running}}' try)" = true ] || break
    sleep 0.2
  done
  if [ "$signal" = stop ]; then podman stop --time 60 try >/dev/null; else podman kill --signal "$signal" try >/dev/null; fi
  podman wait try
}

ended_with() { # CODE …: what end_when prints
  local expected=$1 code
  shift
  code=$(end_when "$@")
  podman logs try
  echo "exit code $code"
  [ "$code" = "$expected" ]
}

wrote_only() { # FOLDER NAME…: what is in it is just that, and all of it belongs to user 1000
  local folder=$1
  shift
  diff <(printf '%s\n' "$@" | sort) <(find "$folder" -mindepth 1 -maxdepth 1 -printf '%f\n' | sort) &&
    diff /dev/null <(find "$folder" ! -uid 1000)
}

root_is_unchanged() { # of the last container: nothing but the places of its mounts
  diff /dev/null <(podman diff try | grep -vE '^[AC] /(conr|dev|etc|photos|proc|run|sys|tmp|work)(/|$)')
}

make_photos() { # IMAGE: 60 pictures of three kinds
  rm -rf "$work/try"
  mkdir -p "$photos" "$project"
  chown -R 1000:1000 "$work/try"
  run "$1" --volume "$photos:/photos" -- python -c '
import numpy as np
from PIL import Image
for number in range(60):
    random = np.random.default_rng(number)
    y, x = np.mgrid[:160, :200]
    kinds = (x // 20 % 2, np.hypot(x - 100, y - 80) < 60, random.random((160, 200)))
    pixels = kinds[number % 3][..., None] * random.integers(100, 255, 3) + random.integers(0, 40, (160, 200, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(f"/photos/{number:02}.jpg")'
  tar -C "$photos" -cf - . | sha256sum >"$work/photos.sha256"
}

try_cluster() {
  local options=(--volume "$project:/work" --volume "$photos:/photos:ro" --workdir /work --) made=$project/conr-photos
  step "conr cluster in the image pipeline: killed, resumed"
  check "a kill ends conr cluster in the middle" \
    ended_with 137 KILL "$made/artifacts/store" pipeline "${options[@]}" conr cluster /photos
  check "there are no results yet" is_not test -e "$made/results/report.html"
  check "the same command finishes it" run pipeline "${options[@]}" conr cluster /photos
  check "the root is unchanged" root_is_unchanged
  check "nothing else was written, all of it by user 1000" wrote_only "$project" conr-photos
  check "the project holds what a project holds" wrote_only "$made" .conr .dvc .dvcignore .gitignore artifacts backbones \
    cluster_names.csv dvc.lock dvc.yaml images params.yaml results
  check "the results are there" ls "$made"/results/{assignments.csv,assignments.parquet,clusterer.onnx,report.html}
  check "every file is what was written (conr info --verify)" \
    run pipeline --volume "$project:/work" --workdir /work/conr-photos -- conr info --verify
  check "the photos are unchanged" diff "$work/photos.sha256" <(tar -C "$photos" -cf - . | sha256sum)
}

try_digits() {
  local options=(--volume "$digits:/conr" --) saved=$digits/.conr/checkpoints
  step "dvc repro of the digits in the image pipeline: stopped, killed, resumed"
  git clone --quiet . "$digits"
  sed -i -E 's/^(  epochs: ).*/\18/; s/^(  schedule_epochs: ).*/\116/; s/^(  warmup_epochs: ).*/\11/' "$digits/params.yaml"
  chown -R 1000:1000 "$digits"
  check "a stop ends it after an epoch" ended_with 255 stop "$saved" pipeline "${options[@]}" dvc repro
  check "and it says how to resume" grep -q "run the same command to resume" <(podman logs try 2>&1)
  check "a kill ends it after another epoch" ended_with 137 KILL "$saved" pipeline "${options[@]}" dvc repro
  check "the same command finishes it" run pipeline "${options[@]}" dvc repro
  check "the root is unchanged" root_is_unchanged
  rm "$digits/.dvc/tmp/rwlock"
  check "without DVC's lock of the killed one, another command works" run pipeline "${options[@]}" dvc repro --force prepare
  check "both trainings have all epochs" \
    diff <(printf '9\n9\n') <(sed -s -n '$=' "$digits"/artifacts/pretrain/log.csv "$digits"/artifacts/finetune/0/log.csv)
  check "all stages are up to date" grep -q "up to date" <(run pipeline "${options[@]}" dvc repro 2>&1)
  check "the results are there" ls "$digits"/results/{assignments.csv,assignments.parquet,clusterer.onnx,report.html}
  check "every file is what was written (conr info --verify)" run pipeline "${options[@]}" conr info --verify
  check "git sees the results only" diff <(printf '%s\n' .conr/ .dvc/{cache,tmp}/ artifacts/ dvc.lock params.yaml results/) \
    <(git -c safe.directory='*' -C "$digits" status --porcelain --ignored | cut -c4- | sed 's,^results/.*,results/,' | sort -u)
  check "all of it belongs to user 1000" diff /dev/null <(find "$digits" ! -uid 1000)
  check "jemalloc is loaded" run pipeline "${options[@]}" grep -q jemalloc /proc/self/maps
}

clusters_of() { # TABLE: file and cluster
  tail -n +2 "$1" | cut -d, -f1,2
}

try_runtime() {
  local options=(--volume "$project:/work" --volume "$photos:/photos:ro" --workdir /work/conr-photos --)
  step "the image runtime"
  check "it has less than 600 MB" test "$(podman image inspect --format '{{.Size}}' localhost/conr-runtime)" -lt 600000000
  check "there is no PyTorch in it" is_not run runtime -- python -c "import torch"
  check "conr --help works" run runtime -- conr --help
  [ -d "$project/conr-photos/results" ] || return 0
  check "conr assign works" run runtime "${options[@]}" conr assign /photos --output /work/assigned.csv
  check "the root is unchanged" root_is_unchanged
  check "it finds the clusters of the run" \
    diff <(clusters_of "$project/conr-photos/results/assignments.csv") <(clusters_of "$project/assigned.csv")
  # shellcheck disable=SC2016
  sed -n '/^```python/,/^```/{/^```/!p}' docs/exports.md >"$project/documented.py"
  check "clusterer.onnx finds them, too, by the code of docs/exports.md" \
    diff <(clusters_of "$project/conr-photos/results/assignments.csv") \
    <(run runtime "${options[@]}" sh -c 'python /work/documented.py /photos/*' | cut -f1,2 | sed 's,^/photos/,,; s/\t/,/')
  check "conr cluster says what is missing" \
    grep -q "which is not installed here" <(run runtime "${options[@]}" conr cluster /photos 2>&1)
}

[ "$(id -u)" = 0 ] || { echo "run this as root"; exit 2; }
trap remove EXIT
prepare_tools
step "the base image"
podman image exists "$base" || make_base
for target in "${targets[@]}"; do
  step "build of the image $target"
  build "$target"
done
step "photos"
[[ "${targets[*]}" = runtime && -d $project/conr-photos/results ]] || make_photos "${targets[0]}"
for target in "${targets[@]}"; do
  if [ "$target" = pipeline ]; then try_cluster; try_digits; else try_runtime; fi
done
step "$failed checks failed"
for target in "${targets[@]}"; do
  podman image inspect --format "conr-$target: {{.Size}} bytes, user {{.User}}" "localhost/conr-$target"
done
[ "$failed" = 0 ]
