/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is said inside TLS, beside podwire.bpf.o, whose maps it shares: programs for functions of
 * TLS libraries, which user space attaches file by file.
 */
#include "include/vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "include/events.h"
#include "include/maps.h"
#include "include/socket.h"
#include "include/storage.h"
#include "include/tls.h"
#include "include/arguments.h"
#include "include/goroutines.h"

#include "programs/buffers.h"
#include "programs/heads.h"
#include "programs/unseen.h"
#include "programs/clear.h"
#include "programs/tls.h"
#include "programs/golang.h"
#include "programs/rustls.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
