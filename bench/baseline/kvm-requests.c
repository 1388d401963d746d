/*
 * What requests for a VM's memory cost with nothing in the way: a KVM VM whose memory is registered and unregistered by binary messages over a
 * SOCK_SEQPACKET socket, with one descriptor each, and the same without a socket. The ioctls, mmaps and madvises are those of GuestMemory; client
 * and server are two threads of one process.
 *
 *     kvm-requests [--filter NAME] [--reps N]
 *
 * Prints a line of JSON a benchmark: nanoseconds a request, the median of the repetitions.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BASE 0x100000000ull
#define SIZE 0x10000ull
#define PAIRS 500
#define MANY 5000

enum { REGISTER, UNREGISTER };

struct request {
    uint32_t operation;
    uint32_t protection;
    uint64_t address, offset, size;
};

struct reply {
    int32_t error;
    uint32_t slot;
    uint64_t id;
};

struct vm {
    int fd, server, client;
    uint32_t registered; /* slots 1 to this are taken */
    void *mappings[MANY + 2];
};

static double times[2 * PAIRS];
static int file;

static void check(int ok, const char *what)
{
    if (ok) return;
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void set_slot(struct vm *vm, uint32_t slot, uint64_t address, uint64_t size, void *memory)
{
    struct kvm_userspace_memory_region region = { .slot = slot, .guest_phys_addr = address, .memory_size = size, .userspace_addr = (uintptr_t)memory };
    check(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
}

static struct reply execute(struct vm *vm, const struct request *request, int descriptor)
{
    uint32_t slot = (request->address - BASE) / SIZE + 1;

    if (request->operation == REGISTER) {
        void *memory = mmap(NULL, request->size, request->protection, MAP_SHARED, descriptor, request->offset);
        check(memory != MAP_FAILED, "mmap");
        madvise(memory, request->size, MADV_DONTDUMP);
        madvise(memory, request->size, MADV_MERGEABLE);
        set_slot(vm, slot, request->address, request->size, memory);
        vm->mappings[slot] = memory;
    } else {
        set_slot(vm, slot, request->address, 0, vm->mappings[slot]);
        munmap(vm->mappings[slot], SIZE);
    }

    return (struct reply){ 0, slot, request->address };
}

static void transmit(int socket, const void *data, size_t length, int descriptor)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    struct iovec part = { (void *)data, length };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

    if (descriptor >= 0) {
        memcpy(CMSG_DATA(&control.header), &descriptor, sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }

    check(sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)length, "sendmsg");
}

static ssize_t take(int socket, void *data, size_t length, int *descriptor)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = { data, length };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
    ssize_t taken = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);

    *descriptor = -1;
    if (taken > 0 && message.msg_controllen >= CMSG_LEN(sizeof(int))) memcpy(descriptor, CMSG_DATA(&control.header), sizeof(int));
    return taken;
}

static void *serve(void *argument)
{
    struct vm *vm = argument;
    struct request request;
    int descriptor;

    while (take(vm->server, &request, sizeof(request), &descriptor) > 0) {
        struct reply reply = execute(vm, &request, descriptor);
        if (descriptor >= 0) close(descriptor);
        transmit(vm->server, &reply, sizeof(reply), -1);
    }

    return NULL;
}

static struct request message(uint32_t operation, uint32_t index)
{
    return (struct request){ operation, PROT_READ | PROT_WRITE, BASE + index * SIZE, 0, SIZE };
}

static struct vm *make_vm(uint32_t registered)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    int device = open("/dev/kvm", O_RDWR | O_CLOEXEC), pair[2];
    pthread_t thread;

    check(device >= 0, "/dev/kvm");
    vm->fd = ioctl(device, KVM_CREATE_VM, 0);
    check(vm->fd >= 0, "KVM_CREATE_VM");
    close(device);
    set_slot(vm, 0, 0, SIZE, mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (uint32_t i = 0; i < registered; i++) {
        struct request request = message(REGISTER, i);
        execute(vm, &request, file);
    }

    vm->registered = registered;
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    vm->server = pair[0];
    vm->client = pair[1];
    check(pthread_create(&thread, NULL, serve, vm) == 0, "pthread_create");
    return vm;
}

static void ask(struct vm *vm, uint32_t operation, uint32_t index)
{
    struct request request = message(operation, index);
    transmit(vm->client, &request, sizeof(request), operation == REGISTER ? file : -1);
}

static void hear(struct vm *vm)
{
    struct reply reply;
    int none;
    check(take(vm->client, &reply, sizeof(reply), &none) == sizeof(reply) && reply.error == 0, "reply");
}

/* Registers and unregisters in turn, waiting for every answer; keeps the time of each. */
static void one_by_one(struct vm *vm)
{
    for (int i = 0; i < 2 * PAIRS; i++) {
        double start = now();
        ask(vm, i % 2 ? UNREGISTER : REGISTER, vm->registered);
        hear(vm);
        times[i] = now() - start;
    }
}

static void in_process(struct vm *vm)
{
    for (int i = 0; i < 2 * PAIRS; i++) {
        struct request request = message(i % 2 ? UNREGISTER : REGISTER, vm->registered);
        execute(vm, &request, file);
    }
}

static void measure(const char *name, struct vm *vm, void (*body)(struct vm *), int repetitions)
{
    double took[64], p99[64];

    for (int i = -1; i < repetitions; i++) {
        double start = now(), end;
        body(vm);
        end = now();
        if (i < 0) continue;
        took[i] = (end - start) / (2 * PAIRS);
        if (body != one_by_one) continue;
        qsort(times, 2 * PAIRS, sizeof(double), compare);
        p99[i] = times[2 * PAIRS * 99 / 100];
    }

    qsort(took, repetitions, sizeof(double), compare);
    printf("{\"bench\":\"%s\",\"ns_op\":%.1f}\n", name, took[repetitions / 2]);
    if (body != one_by_one) return;
    qsort(p99, repetitions, sizeof(double), compare);
    printf("{\"bench\":\"%s_p99\",\"ns_op\":%.1f}\n", name, p99[repetitions / 2]);
}

int main(int count, char **arguments)
{
    const char *filter = "";
    int repetitions = 5;
    struct vm *few, *many;

    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(arguments[i], "--filter")) filter = arguments[i + 1];
        if (!strcmp(arguments[i], "--reps")) repetitions = atoi(arguments[i + 1]);
    }

    check(repetitions > 0 && repetitions <= 64, "--reps");
    file = memfd_create("requests", MFD_CLOEXEC);
    check(file >= 0 && ftruncate(file, SIZE) == 0, "memfd");
    few = make_vm(0);
    many = make_vm(MANY);
    usleep(200000); /* what the kernel still has to do for so many slots */
    if (strstr("in_process", filter)) measure("in_process", few, in_process, repetitions);
    if (strstr("socket", filter)) measure("socket", few, one_by_one, repetitions);
    if (strstr("many_in_process", filter)) measure("many_in_process", many, in_process, repetitions);
    if (strstr("many_socket", filter)) measure("many_socket", many, one_by_one, repetitions);
    return 0;
}
