#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles a crate of ours for fuzzing, in the place of rustc (RUSTC_WORKSPACE_WRAPPER): with counters by
# which libFuzzer sees where an input leads, and with all checks. Build scripts are not fuzzed.
case " $* " in
*" --crate-name build_script_"* | *" --print "*) exec "$@" ;;
esac
# Profile `quick` does not optimise our crates: an input would take five times as long.
exec "$@" -Copt-level=1 -Cdebug-assertions=on -Coverflow-checks=on \
	-Cpasses=sancov-module \
	-Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
