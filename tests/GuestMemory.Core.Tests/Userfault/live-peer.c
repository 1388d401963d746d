/*
 * live-peer SOCKET PAGES [signals]
 *
 * A VMM whose memory is a memfd that it hands over with its userfaultfd, and whose two threads write and give back pages of it without a pause, in
 * an order that follows from their steps alone: so whoever sees the memory at one instant can tell whether it is that of one instant. On a line on standard
 * input the threads begin ("go"), stop ("stop"), or the program says how many steps they have made ("steps"). It ends with the input. With
 * "signals" the threads are interrupted by a signal again and again, as those of a VMM are.
 *
 * Page 0 has the number of the last complete step of thread T at T * 64. Step K of thread T is about page 2 + 2 * (h % (PAGES / 2 - 1)) + T, where h is
 * splitmix64(2 * K + T): every 16th is given back, into any other are written K at 0, the other thread's last complete step at 8, and K at 4088.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE 4096ul
#define WRITERS 2

static char *memory;
static size_t pages;
static atomic_int running, over, idle;
static pthread_t threads[WRITERS];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static _Atomic uint64_t *progress(int thread)
{
    return (_Atomic uint64_t *)(memory + thread * 64);
}

static void *write_pages(void *argument)
{
    int self = (int)(intptr_t)argument;
    uint64_t step = 0;
    while (!atomic_load(&over)) {
        if (!atomic_load(&running)) {
            atomic_fetch_add(&idle, 1);
            while (!atomic_load(&running) && !atomic_load(&over)) usleep(100);
            atomic_fetch_sub(&idle, 1);
            continue;
        }

        uint64_t h = mix(2 * ++step + (uint64_t)self);
        char *page = memory + (2 + 2 * (h % (pages / 2 - 1)) + (uint64_t)self) * PAGE;
        if ((h >> 32) % 16 == 0) {
            if (madvise(page, PAGE, MADV_REMOVE)) die("MADV_REMOVE");
        } else {
            volatile uint64_t *words = (volatile uint64_t *)page;
            words[0] = step;
            words[1] = atomic_load(progress(1 - self));
            words[511] = step;
        }

        atomic_store(progress(self), step);
    }

    return NULL;
}

static void on_signal(int number)
{
    (void)number;
}

static void *send_signals(void *argument)
{
    (void)argument;
    while (!atomic_load(&over)) {
        for (int i = 0; i < WRITERS; i++) pthread_kill(threads[i], SIGUSR1);
        usleep(50);
    }

    return NULL;
}

static void hand_over(const char *path, int uffd, int memfd)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0 || connect(s, (void *)&address, sizeof address)) die(path);
    /* Two regions, the second one first. */
    char json[512];
    size_t half = pages / 2 * PAGE;
    int length = snprintf(json, sizeof json, "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":%zu,\"page_size\":4096,\"page_size_kib\":4096},"
        "{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]",
        (unsigned long long)(uintptr_t)(memory + half), pages * PAGE - half, half, (unsigned long long)(uintptr_t)memory, half);
    int descriptors[2] = { uffd, memfd };
    union { char bytes[CMSG_SPACE(sizeof descriptors)]; struct cmsghdr header; } control = { .header = { .cmsg_len = CMSG_LEN(sizeof descriptors), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    memcpy(CMSG_DATA(&control.header), descriptors, sizeof descriptors);
    struct iovec vector = { json, (size_t)length };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
    if (sendmsg(s, &message, MSG_NOSIGNAL) != length) die("sendmsg");
}

int main(int argc, char **argv)
{
    if (argc < 3) return 2;
    pages = strtoul(argv[2], NULL, 10);
    int memfd = memfd_create("live-peer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0 || ftruncate(memfd, (off_t)(pages * PAGE)) || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)) die("memfd");
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (memory == MAP_FAILED) die("mmap");
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0) die("userfaultfd");
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM };
    if (ioctl(uffd, UFFDIO_API, &api)) die("UFFDIO_API");
    struct uffdio_register reg = { .range = { (uintptr_t)memory, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (ioctl(uffd, UFFDIO_REGISTER, &reg)) die("UFFDIO_REGISTER");
    hand_over(argv[1], uffd, memfd);
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigaction(SIGUSR1, &action, NULL);
    for (int i = 0; i < WRITERS; i++) if (pthread_create(&threads[i], NULL, write_pages, (void *)(intptr_t)i)) die("pthread_create");
    pthread_t signals;
    if (argc > 3 && pthread_create(&signals, NULL, send_signals, NULL)) die("pthread_create");
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "go\n")) atomic_store(&running, 1);
        if (!strcmp(line, "stop\n")) {
            atomic_store(&running, 0);
            while (atomic_load(&idle) < WRITERS) usleep(100);
        }

        printf("%llu %llu\n", (unsigned long long)atomic_load(progress(0)), (unsigned long long)atomic_load(progress(1)));
        fflush(stdout);
    }

    return 0;
}
