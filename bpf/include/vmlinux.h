/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel types that podwire reads, with only the members that it reads. CO-RE relocates every
 * access by member name against the running kernel, so neither offsets nor omissions matter here,
 * and one object serves all kernels of an architecture.
 */
#ifndef PODWIRE_VMLINUX_H
#define PODWIRE_VMLINUX_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;

enum { false = 0, true = 1 };

/* uapi/linux/bpf.h; the kernel's BTF holds them too, as part of the stable interface. */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1,
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_AVAIL_DATA = 0,
	BPF_RB_RING_SIZE = 1,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r14;
	unsigned long bx;
	unsigned long r10;
	unsigned long r8;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long ax;
	unsigned long orig_ax;
	unsigned long sp;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 sp;
	__s32 syscallno;
};
#endif

struct thread_info {
	unsigned long flags;
	__u32 status; /* x86 */
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;

/* Linux kernel commit 90ee6ed776c0 ("fs: port files to file_ref") (in v6.13). */
typedef struct {
	atomic64_t refcnt;
} file_ref_t;

struct super_block {
	__u32 s_dev;
};

struct inode {
	__u16 i_mode;
	unsigned long i_ino;
	__u32 i_generation;
	struct super_block *i_sb;
};

struct file {
	void *private_data;
	struct inode *f_inode;
	file_ref_t f_ref;
};

/* Before v6.13. */
struct file___count {
	atomic64_t f_count;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct signal_struct {
	atomic_t live;
};

struct io_uring_task;

struct thread_struct {
	unsigned long fsbase; /* x86 */
};

/* Which helpers a kernel has. */
enum bpf_func_id {
	BPF_FUNC_task_pt_regs = 175,
};

struct task_struct {
	struct thread_info thread_info;
	void *stack;
	struct mm_struct *mm;
	unsigned int flags;
	int pid;
	int tgid;
	char comm[16];
	struct files_struct *files;
	struct io_uring_task *io_uring;
	struct signal_struct *signal;
	struct css_set *cgroups;
	struct thread_struct thread;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

typedef struct {
	int owned;
} socket_lock_t;

/* Before v5.15 the cgroup hid in a tagged word; those kernels then give 0. */
struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct bpf_map {
	__u32 id;
};

struct bpf_local_storage_map {
	struct bpf_map map;
};

struct bpf_local_storage_data {
	struct bpf_local_storage_map *smap;
	__u8 data[0];
};

struct bpf_local_storage_elem {
	struct hlist_node snode;
	struct bpf_local_storage_data sdata;
};

struct bpf_local_storage {
	struct hlist_head list;
};

struct socket;

struct sock {
	struct sock_common __sk_common;
	struct {
		struct sk_buff *tail;
	} sk_backlog;
	socket_lock_t sk_lock;
	__u16 sk_type;
	__u16 sk_protocol;
	int sk_err;
	int sk_err_soft;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
	struct bpf_local_storage *sk_bpf_storage;
};

struct inet_sock {
	__be16 inet_sport;
};

struct tcp_sock {
	__u64 bytes_received;
	__u64 bytes_sent;
	__u32 data_segs_in;
	__u32 data_segs_out;
	__u32 total_retrans;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 write_seq;
	bool is_mptcp;
};

/* In sk_buff.cb. */
struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
	__u8 tcp_flags;
};

struct qdisc_skb_cb {
	unsigned int pkt_len;
};

struct tcphdr {
	__be16 source;
	__be32 seq;
};

struct skb_shared_info {
	unsigned short gso_size;
	unsigned short gso_segs;
};

/* Came together with the tracepoint's third argument: Linux kernel commit c504e5c2f964 ("net: skb:
 * introduce kfree_skb_reason()") (in v5.17). */
enum skb_drop_reason {
	SKB_NOT_DROPPED_YET = 0,
};

struct net_device;

struct sk_buff {
	struct sock *sk;
	char cb[48];
	unsigned int len;
	int skb_iif;
	__u8 encapsulation : 1;
	__u16 inner_transport_header;
	__u16 transport_header;
	__u16 mac_header;
	unsigned int end;
	unsigned char *head;
};

struct nf_hook_state {
	__u8 hook;
	__u8 pf;
};

struct neighbour;
struct list_head;

typedef enum {
	SS_FREE = 0,
	SS_UNCONNECTED,
	SS_CONNECTING,
	SS_CONNECTED,
	SS_DISCONNECTING
} socket_state;

struct socket {
	socket_state state;
	struct file *file;
	struct sock *sk;
};

struct linux_binprm;

struct bpf_iter_meta;

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

#endif
