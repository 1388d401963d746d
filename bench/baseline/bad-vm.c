/* bad-vm SOCKET gigantic|lazy|no-huge-pages|errors|stopped|blocking
   A VM that keeps its handler busy, until it is killed; prints "busy" when it has begun:
   gigantic       says that its memory has pages of 1 GiB, and touches it, again and again with fresh memory
   lazy           removes pages in a thread that runs only when its CPU has nothing else to do, which it always has, and touches others meanwhile:
                  until that thread has run, every fill fails with EAGAIN
   no-huge-pages  has memory of 1 GiB pages, of which the host has none
   errors         sends bad hand-overs
   stopped        is stopped (SIGSTOP) while faults and a removal wait
   blocking       makes its userfaultfd, of which the handler has a duplicate, a blocking one, and touches a page now and then */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
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

#define GIB (1ul << 30)
#define PAGE 4096ul
#define HUGE_1GB (MAP_HUGETLB | 30 << 26)

static const char *path;
static char *memory;
static int uffd;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Its handler may have given it up: a poisoned page ends one touch, and nothing else. */
static __thread sigjmp_buf poisoned;
static __thread volatile sig_atomic_t touching;

static void on_sigbus(int number)
{
    if (!touching) _exit(number);
    siglongjmp(poisoned, 1);
}

static void touch(size_t offset)
{
    touching = 1;
    if (!sigsetjmp(poisoned, 1)) (void)*(volatile char *)(memory + offset);
    touching = 0;
}

/* A socket with the memory handed over; -1 where no handler listens any more. */
static int hand_over(size_t page, const char *text)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char json[256];
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (s < 0) die("socket");
    if (connect(s, (void *)&address, sizeof address)) {
        close(s);
        return -1;
    }

    int length = snprintf(json, sizeof json, text, (unsigned long long)memory, GIB, page, page);
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    memcpy(CMSG_DATA(&control.header), &uffd, sizeof uffd);
    struct iovec vector = { json, (size_t)length };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
    (void)!sendmsg(s, &message, MSG_NOSIGNAL);
    return s;
}

static const char *list = "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":%zu,\"page_size_kib\":%zu}]";

/* Memory of 1 GiB at a multiple of that, so that every page size can be claimed, watched by a new userfaultfd. */
static void map(int flags)
{
    char *mapped = mmap(NULL, flags ? GIB : 2 * GIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    if (mapped == MAP_FAILED) die("mmap");
    memory = (char *)(((uintptr_t)mapped + GIB - 1) & ~(GIB - 1));
    if (!flags) {
        munmap(mapped, (size_t)(memory - mapped));
        munmap(memory + GIB, (size_t)(mapped + GIB - memory));
    }

    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
    struct uffdio_register reg = { .range = { (uint64_t)memory, GIB }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg)) die("userfaultfd");
}

static void stay_on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void *spin(void *unused)
{
    stay_on(0);
    for (volatile unsigned long i = 0;; i++) ;
    return unused;
}

static void *remove_lazily(void *unused)
{
    struct sched_param none = { 0 };
    stay_on(0);
    if (sched_setscheduler(0, SCHED_IDLE, &none)) die("sched_setscheduler");
    for (size_t i = 0;; i = (i + 1) % (GIB / PAGE / 2)) madvise(memory + i * PAGE, PAGE, MADV_DONTNEED);
    return unused;
}

static void *touch_all(void *first)
{
    for (size_t i = (size_t)first;; i = (i + 2) % (GIB / PAGE)) {
        touch(i * PAGE);
        usleep(100);
    }

    return NULL;
}

static void run(void *(*body)(void *), size_t argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, body, (void *)argument)) die("pthread_create");
}

int main(int argc, char **argv)
{
    struct sigaction action = { .sa_handler = on_sigbus };
    if (argc != 3) return 2;
    path = argv[1];
    const char *kind = argv[2];
    sigaction(SIGBUS, &action, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(kind, "gigantic")) {
        for (int i = 0;; i++) {
            map(0);
            int s = hand_over(GIB, list);
            if (i == 0) puts("busy");
            if (s < 0) pause();
            touch(GIB / 2);
            munmap(memory, GIB);
            close(uffd);
            close(s);
        }
    } else if (!strcmp(kind, "errors")) {
        map(0);
        puts("busy");
        for (;;) {
            int s = hand_over(PAGE, "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":123,\"page_size\":%zu,\"page_size_kib\":0}]");
            if (s < 0) pause();
            close(s);
        }
    }

    map(!strcmp(kind, "no-huge-pages") ? HUGE_1GB : 0);
    int s = hand_over(!strcmp(kind, "no-huge-pages") ? GIB : PAGE, list);
    if (s < 0) die(path);
    if (!strcmp(kind, "lazy")) {
        run(spin, 0);
        run(remove_lazily, 0);
        run(touch_all, GIB / PAGE / 2);
    } else if (!strcmp(kind, "no-huge-pages")) {
        for (int i = 0; i < 4; i++) run(touch_all, (size_t)i);
    } else if (!strcmp(kind, "stopped")) {
        run(touch_all, 1);
        run(remove_lazily, 0);
        usleep(50000);
        puts("busy");
        raise(SIGSTOP);
    } else if (!strcmp(kind, "blocking")) {
        fcntl(uffd, F_SETFL, 0);
        run(touch_all, 0);
    } else {
        return 2;
    }

    usleep(50000);
    puts("busy");
    for (;;) pause();
}
