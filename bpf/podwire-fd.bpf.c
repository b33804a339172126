/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The tracepoint tier for kernels older than storage for tracing programs (v5.11) or than sockets
 * that tell the bytes of a call (v6.3): state in hashes, bytes by file descriptor.
 */
#include "include/vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "include/events.h"
#include "include/maps.h"
#include "include/flows.h"
#include "include/socket.h"
#include "include/hashes.h"
#include "include/figures.h"
#include "include/scope.h"
#include "include/ring.h"
#include "include/state.h"
#include "include/tls.h"
#include "include/arguments.h"
#include "include/goroutines.h"
#include "include/syscalls.h"

#include "programs/calls.h"
#include "programs/buffers.h"
#include "programs/heads.h"
#include "programs/unseen.h"
#include "programs/pairing.h"
#include "programs/framing.h"
#include "programs/payloads.h"
#include "programs/descriptors.h"
#include "programs/connections.h"
#include "programs/existing.h"
#include "programs/processes.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
