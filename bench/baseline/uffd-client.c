/*
 * uffd-client SOCKET MIB [--order random|seq|strided] [--threads N] [--seed N] [--touches N] [--image FILE] [--pause US] [--while FILE] [--huge] [--stay] [--close]
 *
 * A VMM reduced to its page faults: maps MIB of memory, registers it with a userfaultfd, hands that over to the handler at
 * SOCKET as Firecracker does, touches every page once and prints what the touches took, as one line of JSON. The same client
 * measures every handler. A touch that took 2 us or longer counts as a fault: one of a page that is there takes a tenth of that.
 * With --image every page is compared with the file. With --pause it sleeps so many microseconds after each touch,
 * with --while only as long as a file is there. With --stay it waits to be killed afterwards.
 * With --close it closes its socket right after the hand-over, as Firecracker did until March 2025 (PR #5122).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void hand_over(const char *path, int uffd, const void *memory, size_t size, size_t page, int closes)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (s < 0 || connect(s, (void *)&address, sizeof address)) die(path);
    char json[256];
    int length = snprintf(json, sizeof json, "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":%zu,\"page_size_kib\":%zu}]",
                          (unsigned long long)memory, size, page, page);
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    memcpy(CMSG_DATA(&control.header), &uffd, sizeof uffd);
    struct iovec vector = { json, (size_t)length };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
    if (sendmsg(s, &message, MSG_NOSIGNAL) != length) die("sendmsg");
    /* Else the socket stays open as long as the process lives. */
    if (closes) close(s);
}

static char *memory;
static size_t page = 4096, touches, threads = 1;
static uint32_t *sequence;
static uint64_t *latency;
static int fd = -1;
static useconds_t pause_us;
static const char *pause_while;

/* Every thread touches every n-th page of the sequence. */
static void *touch(void *argument)
{
    char *expected = malloc(page);
    uint64_t bad = 0;
    if (!expected) die("malloc");
    for (size_t i = (size_t)argument; i < touches; i += threads) {
        char *at = memory + (size_t)sequence[i] * page;
        uint64_t before = now();
        (void)*(volatile char *)at;
        latency[i] = now() - before;
        if (pause_us && (!pause_while || !access(pause_while, F_OK))) usleep(pause_us);
        if (fd < 0) continue;
        if (pread(fd, expected, page, (off_t)(at - memory)) != (ssize_t)page) die("pread");
        bad += memcmp(expected, at, page) != 0;
    }

    free(expected);
    return (void *)bad;
}

int main(int argc, char **argv)
{
    const char *order = "random", *image = NULL;
    uint64_t seed = 1;
    int stay = 0, closes = 0;
    if (argc < 3) return 2;
    for (int i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--order") && i + 1 < argc) order = argv[++i];
        else if (!strcmp(argv[i], "--threads") && i + 1 < argc) threads = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc) seed = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--touches") && i + 1 < argc) touches = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--image") && i + 1 < argc) image = argv[++i];
        else if (!strcmp(argv[i], "--pause") && i + 1 < argc) pause_us = (useconds_t)strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--while") && i + 1 < argc) pause_while = argv[++i];
        else if (!strcmp(argv[i], "--huge")) page = 2097152;
        else if (!strcmp(argv[i], "--stay")) stay = 1;
        else if (!strcmp(argv[i], "--close")) closes = 1;
        else return 2;
    }

    size_t size = strtoull(argv[2], NULL, 0) << 20, pages = size / page;
    if (!touches || touches > pages) touches = pages;
    int huge = page == 4096 ? 0 : MAP_HUGETLB | 21 << 26;
    if (!threads || threads > 64) return 2;
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (huge ? 0 : MAP_NORESERVE) | huge, -1, 0);
    if (memory == MAP_FAILED) die("mmap");
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0) die("userfaultfd");
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
    if (ioctl(uffd, UFFDIO_API, &api)) die("UFFDIO_API");
    struct uffdio_register reg = { .range = { (uint64_t)memory, size }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (ioctl(uffd, UFFDIO_REGISTER, &reg)) die("UFFDIO_REGISTER");

    sequence = malloc(pages * sizeof *sequence);
    latency = malloc(touches * sizeof *latency);
    if (!sequence || !latency) die("malloc");
    for (size_t i = 0; i < pages; i++) sequence[i] = (uint32_t)i;
    /* Strided: every 16th page, then the ones behind them, and so on. */
    if (!strcmp(order, "strided")) for (size_t i = 0, at = 0, first = 0; i < pages; i++) {
        sequence[i] = (uint32_t)at;
        if ((at += 16) >= pages) at = ++first;
    }
    for (size_t i = pages; !strcmp(order, "random") && i > 1; i--) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        size_t j = seed % i;
        uint32_t t = sequence[i - 1];
        sequence[i - 1] = sequence[j];
        sequence[j] = t;
    }

    fd = image ? open(image, O_RDONLY | O_CLOEXEC) : -1;
    if (image && fd < 0) die(image);
    memset(latency, 0, touches * sizeof *latency);
    hand_over(argv[1], uffd, memory, size, page, closes);
    uint64_t started = now(), sum = 0, bad = 0;
    pthread_t thread[64];
    for (size_t i = 1; i < threads; i++) if (pthread_create(&thread[i], NULL, touch, (void *)i)) die("pthread_create");
    bad = (uint64_t)touch((void *)0);
    for (size_t i = 1; i < threads; i++) {
        void *of_thread;
        pthread_join(thread[i], &of_thread);
        bad += (uint64_t)of_thread;
    }

    uint64_t total = now() - started, first = latency[0];
    for (size_t i = 0; i < touches; i++) sum += latency[i];
    qsort(latency, touches, sizeof *latency, compare);
    size_t hits = 0;
    while (hits < touches && latency[hits] < 2000) hits++;
    size_t faults = touches - hits;
    uint64_t *fault = latency + hits, none = 0;
    if (!faults) fault = &none;
    printf("{\"touches\":%zu,\"faults\":%zu,\"fault_p50_us\":%.3f,\"fault_p99_us\":%.3f,\"first_us\":%.3f,\"p50_us\":%.3f,\"p90_us\":%.3f,\"p99_us\":%.3f,\"p999_us\":%.3f,\"max_us\":%.3f,\"mean_us\":%.3f,\"total_ms\":%.3f,\"bad\":%llu}\n",
           touches, faults, fault[faults / 2] / 1e3, fault[faults * 99 / 100] / 1e3, first / 1e3, latency[touches / 2] / 1e3, latency[touches * 9 / 10] / 1e3, latency[touches * 99 / 100] / 1e3, latency[touches * 999 / 1000] / 1e3,
           latency[touches - 1] / 1e3, sum / 1e3 / touches, total / 1e6, (unsigned long long)bad);
    fflush(stdout);
    while (stay) pause();
    return bad ? 1 : 0;
}
