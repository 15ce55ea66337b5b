#!/usr/bin/env bash
# Builds Burn's WebGPU backend and holds a tiny model on it against the processor, on a Vulkan that is
# software: Mesa's lavapipe (apt: mesa-vulkan-drivers), or SwiftShader (apt: chromium-common).
#
#     benches/webgpu.sh [lavapipe|swiftshader|hardware]
#
# By hand, not in CI: the build takes long (LOG.md says how long).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-lavapipe}" in
lavapipe) icd=$(ls /usr/share/vulkan/icd.d/lvp_icd.*.json 2>/dev/null | head -1) ;;
swiftshader) icd=$(ls /usr/lib/chromium/vk_swiftshader_icd.json 2>/dev/null | head -1) ;;
hardware) icd= ;;
*)
    echo "expected lavapipe, swiftshader or hardware, found $1" >&2
    exit 2
    ;;
esac
if [ "${1:-lavapipe}" != hardware ]; then
    if [ -z "$icd" ]; then
        echo "no software Vulkan: apt-get install mesa-vulkan-drivers (or chromium-common)" >&2
        exit 2
    fi
    export VK_ICD_FILENAMES=$icd
fi
time cargo build --release --manifest-path benches/webgpu/Cargo.toml
exec benches/webgpu/target/release/danlu-webgpu
