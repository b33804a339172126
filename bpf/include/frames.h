/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Arguments of functions that a kretprobe will see return. The address of a frame's return address
 * is unlike that of any other frame alive, whatever thread, interrupt or CPU runs it; what a missed
 * return leaves behind is overwritten by the next frame there, or is the oldest one day.
 */
#ifndef PODWIRE_FRAMES_H
#define PODWIRE_FRAMES_H

#include "arguments.h"

struct frame {
	__u64 arguments[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, __u64);
	__type(value, struct frame);
} frames SEC(".maps");

static __always_inline void push_frame(struct pt_regs *ctx, __u64 first, __u64 second)
{
	struct frame frame = {.arguments = {first, second}};
	__u64 key = FRAME_AT_ENTRY(ctx);

	bpf_map_update_elem(&frames, &key, &frame, BPF_ANY);
}

static __always_inline bool pop_frame(struct pt_regs *ctx, struct frame *to)
{
	__u64 key = FRAME_AT_RETURN(ctx);
	struct frame *found = bpf_map_lookup_elem(&frames, &key);

	if (!found)
		return false;
	*to = *found;
	bpf_map_delete_elem(&frames, &key);
	return true;
}

#endif
