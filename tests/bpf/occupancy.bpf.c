/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Writes local port and remote port of each socket with an entry in the map it is pinned with. */
#include "bpf/include/vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
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
	struct sock *sk = ctx->sk;
	__u16 ports[2];

	if (!sk)
		return 0;
	ports[0] = sk->__sk_common.skc_num;
	ports[1] = bpf_ntohs(sk->__sk_common.skc_dport);
	bpf_seq_write(ctx->meta->seq, ports, sizeof(ports));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
