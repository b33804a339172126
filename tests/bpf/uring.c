/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A server and a client that use nothing but io_uring, by raw system calls:
 *   uring PORT_FILE ROUNDS SIZE
 * Multishot accept, connect, send and recv of ROUNDS connections with one message of SIZE bytes
 * each; prints bytes sent and received.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct io_uring_params params;
static int ring;
static char *sq, *cq;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe accepted;

static struct io_uring_sqe *prepare(int op, int fd, const void *address, unsigned length,
				    unsigned long long offset, unsigned long long tag)
{
	unsigned *tail = (unsigned *)(sq + params.sq_off.tail);
	unsigned index = *tail & *(unsigned *)(sq + params.sq_off.ring_mask);
	struct io_uring_sqe *sqe = &sqes[index];

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = op;
	sqe->fd = fd;
	sqe->addr = (unsigned long long)address;
	sqe->len = length;
	sqe->off = offset;
	sqe->user_data = tag;
	((unsigned *)(sq + params.sq_off.array))[index] = index;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	return sqe;
}

static void submit(void)
{
	if (syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) != 1) {
		perror("io_uring_enter");
		exit(1);
	}
}

/* Result of the operation tagged `tag`; accepts that complete meanwhile are kept. */
static int result_of(unsigned long long tag)
{
	unsigned *head = (unsigned *)(cq + params.cq_off.head);
	unsigned *tail = (unsigned *)(cq + params.cq_off.tail);
	struct io_uring_cqe *cqes = (void *)(cq + params.cq_off.cqes), cqe;

	if (tag == 1 && accepted.user_data) {
		accepted.user_data = 0;
		return accepted.res;
	}
	for (;;) {
		while (*head == __atomic_load_n(tail, __ATOMIC_ACQUIRE))
			syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
		cqe = cqes[*head & *(unsigned *)(cq + params.cq_off.ring_mask)];
		__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
		if (cqe.user_data == tag)
			return cqe.res;
		if (cqe.user_data == 1)
			accepted = cqe;
	}
}

int main(int count, char **arguments)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), rounds, size;
	long sent = 0, received = 0;
	char *buffer;
	FILE *file;

	if (count != 4)
		return 2;
	rounds = atoi(arguments[2]);
	size = atoi(arguments[3]);
	buffer = calloc(1, size);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	bind(listener, (void *)&address, sizeof(address));
	listen(listener, 64);
	getsockname(listener, (void *)&address, &length);
	ring = syscall(SYS_io_uring_setup, 64, &params);
	if (ring < 0) {
		perror("io_uring_setup");
		return 3;
	}
	sq = mmap(0, params.sq_off.array + params.sq_entries * 4, PROT_READ | PROT_WRITE,
		  MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
		  PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	sqes = mmap(0, params.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		    IORING_OFF_SQES);
	file = fopen(arguments[1], "w");
	fprintf(file, "%d", ntohs(address.sin_port));
	fclose(file);
	prepare(IORING_OP_ACCEPT, listener, 0, 0, 0, 1)->ioprio = IORING_ACCEPT_MULTISHOT;
	submit();
	for (int i = 0; i < rounds; i++) {
		int client = socket(AF_INET, SOCK_STREAM, 0), server, got = 0, part;

		prepare(IORING_OP_CONNECT, client, &address, 0, sizeof(address), 2);
		submit();
		if (result_of(2))
			return 4;
		server = result_of(1);
		if (server < 0)
			return 5;
		/* Odd rounds wait for the data first: completed by task work, not inline. */
		if (i & 1) {
			prepare(IORING_OP_RECV, server, buffer, size, 0, 4);
			submit();
		}
		prepare(IORING_OP_SEND, client, buffer, size, 0, 3);
		submit();
		sent += result_of(3);
		if (i & 1)
			got = result_of(4);
		while (got < size) {
			/* Every fourth round through a worker thread. */
			prepare(IORING_OP_RECV, server, buffer, size, 0, 4)->flags =
				i & 2 ? IOSQE_ASYNC : 0;
			submit();
			part = result_of(4);
			if (part <= 0)
				return 6;
			got += part;
		}
		received += got;
		if (i & 1) {
			prepare(IORING_OP_CLOSE, client, 0, 0, 0, 5);
			submit();
			result_of(5);
		} else {
			close(client);
		}
		close(server);
	}
	printf("%ld %ld\n", sent, received);
	return 0;
}
