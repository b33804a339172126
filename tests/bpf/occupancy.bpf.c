/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Prints a line per socket that has an entry in the map it is pinned with. */
#include "bpf/include/vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	void *map;
	struct sock *sk;
	void *value;
} __attribute__((preserve_access_index));

SEC("iter/bpf_sk_storage_map")
int count_entries(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	static const char line[] = "socket\n";

	if (ctx->sk)
		bpf_seq_write(ctx->meta->seq, line, sizeof(line) - 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
