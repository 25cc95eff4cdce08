#!/bin/sh
# A file of an image to `sigcam serve` by curl.
#
#     sh examples/clients/with_curl.sh cat.jpg map.png [MODEL] [http://127.0.0.1:8000]
#
# Prints the answer as JSON, with boxes, and writes the map of the most probable class.
set -eu

image=$1 out=$2 model=${3:+&model=$3} url=${4:-http://127.0.0.1:8000}

# --fail-with-body: an error's reason is printed, and curl ends with 22.
curl --silent --show-error --fail-with-body -F "image=@$image" "$url/explain?top_k=3$model"
echo
curl --silent --show-error --fail -F "image=@$image" "$url/explain?format=png$model" -o "$out"
