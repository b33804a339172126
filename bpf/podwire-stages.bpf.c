/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where the time of a read or a write goes between the application and the wire. Every program
 * stands alone: a kernel that lacks one hook loses only the figures that need it. The maps of
 * flows.h are those of the core object that runs beside this one.
 */
#include "include/vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "include/events.h"
#include "include/flows.h"
#include "include/packets.h"
#include "include/frames.h"

#include "programs/sending.h"
#include "programs/receiving.h"
#include "programs/stages.h"
#include "programs/twins.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
