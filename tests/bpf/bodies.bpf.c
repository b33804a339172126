/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs at functions do, for the benchmark: where the kernel has neither fentry nor
 * kprobes, each of them runs at the tracepoint of the same packet that is nearest to its function.
 */
#include "bpf/include/vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "bpf/include/events.h"
#include "bpf/include/flows.h"
#include "bpf/include/packets.h"

#include "bpf/programs/sending.h"
#include "bpf/programs/receiving.h"

static __always_inline struct sock *sender_of(struct sk_buff *skb);

/* Above the device on the way down, hence before its tracepoint's own program. */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(tcp_sendmsg_enter, struct sk_buff *skb)
{
	return on_send((__u64)sender_of(skb));
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(__ip_queue_xmit_enter, struct sk_buff *skb)
{
	return on_ip_xmit((__u64)sender_of(skb), (__u64)skb);
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(ip_output_enter, struct sk_buff *skb)
{
	return on_ip_output((__u64)skb);
}

#include "bpf/programs/stages.h"

/* The last one that knows the sock. */
SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(__ip_queue_xmit_exit, struct sk_buff *skb)
{
	return on_ip_left((__u64)sender_of(skb), (__u64)skb);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(tcp_sendmsg_exit, struct sock *sk, int result)
{
	return on_sent((__u64)sk, result);
}

/* Above the device on the way up, hence after its tracepoint's own program. */
SEC("tp_btf/netif_receive_skb")
int BPF_PROG(ip_rcv_enter, struct sk_buff *skb)
{
	return on_ip((__u64)skb);
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(ip_local_deliver_enter, struct sk_buff *skb)
{
	return on_local((__u64)skb);
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(tcp_v4_rcv_enter, struct sk_buff *skb)
{
	return on_tcp((__u64)skb);
}

SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_v4_rcv_exit, struct sock *sk, struct sk_buff *skb)
{
	return on_tcp_left((__u64)skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
