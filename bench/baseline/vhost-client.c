/* vhost-client SOCKET read|write --bytes N --depth N --seconds N [--log]
   A vhost-user front end without a VM: keeps so many requests of a virtio-blk disk under way, each at a random multiple of its size, on one
   virtqueue with event index, and prints one JSON line: requests a second. --log has the back end mark what it writes in a dirty log, which a
   migration does; nothing takes the marks. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { GET_FEATURES = 1, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 5, SET_LOG_BASE, SET_VRING_NUM = 8, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK = 12, SET_VRING_CALL,
       GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE = 18, GET_CONFIG = 24 };
#define PROTOCOL_FEATURES (1ull << 30)
#define P_MQ 1ull
#define P_LOG_SHMFD 2ull
#define P_CONFIG (1ull << 9)
#define ENTRIES 128u
#define MEMORY (64ul << 20)
#define HEADERS 0x8000ul
#define BUFFERS (1ul << 20)

struct message {
    uint32_t request, flags, size;
    union {
        uint64_t number;
        struct { uint32_t index, value; } state;
        struct { uint32_t index, flags; uint64_t desc, used, avail, log; } address;
        struct { uint32_t count, padding; uint64_t guest, size, user, offset; } table;
        struct { uint64_t size, offset; } log;
        struct { uint32_t offset, size, flags; uint8_t bytes[64]; } config;
    } body;
} __attribute__((packed));

static int sock;
static uint8_t *memory;

static void need(int condition, const char *what)
{
    if (condition) return;
    perror(what);
    exit(1);
}

static void send_message(struct message *m, uint32_t request, uint32_t size, int fd)
{
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    m->request = request;
    m->flags = 1;
    m->size = size;
    struct iovec vector = { m, 12 + size };
    struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1 };
    if (fd >= 0) {
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
        header.msg_control = control.bytes;
        header.msg_controllen = sizeof control.bytes;
    }

    need(sendmsg(sock, &header, 0) == (ssize_t)(12 + size), "sendmsg");
}

static void receive(struct message *m)
{
    need(recv(sock, m, 12, MSG_WAITALL) == 12 && m->size <= sizeof m->body && recv(sock, &m->body, m->size, MSG_WAITALL) == (ssize_t)m->size, "an answer");
}

static uint64_t get(uint32_t request)
{
    struct message m = { 0 };
    send_message(&m, request, 0, -1);
    receive(&m);
    return m.body.number;
}

static void set(uint32_t request, uint64_t number)
{
    struct message m = { .body.number = number };
    send_message(&m, request, 8, -1);
}

static void set_state(uint32_t request, uint32_t value)
{
    struct message m = { .body.state = { 0, value } };
    send_message(&m, request, 8, -1);
}

static int memfd(const char *name, size_t size)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    need(fd >= 0 && ftruncate(fd, (off_t)size) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "memfd");
    return fd;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int count, char **arguments)
{
    size_t bytes = 4096;
    unsigned depth = 1;
    double seconds = 1;
    int log = 0, writes;
    if (count < 3) return 2;
    writes = !strcmp(arguments[2], "write");
    for (int i = 3; i < count; i++) {
        if (!strcmp(arguments[i], "--log")) log = 1;
        else if (i + 1 == count) return 2;
        else if (!strcmp(arguments[i], "--bytes")) bytes = strtoul(arguments[++i], NULL, 0);
        else if (!strcmp(arguments[i], "--depth")) depth = (unsigned)atoi(arguments[++i]);
        else if (!strcmp(arguments[i], "--seconds")) seconds = atof(arguments[++i]);
        else return 2;
    }

    if (depth < 1 || depth * 3 > ENTRIES || BUFFERS + depth * bytes > MEMORY) return 2;
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    strncpy(name.sun_path, arguments[1], sizeof name.sun_path - 1);
    sock = socket(AF_UNIX, SOCK_STREAM, 0);
    need(sock >= 0 && connect(sock, (void *)&name, sizeof name) == 0, arguments[1]);

    int fd = memfd("guest", MEMORY);
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    need(memory != MAP_FAILED, "mmap");
    memset(memory + BUFFERS, 0x5a, depth * bytes);
    uint64_t features = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << VIRTIO_BLK_F_FLUSH | PROTOCOL_FEATURES;
    need((get(GET_FEATURES) & features) == features, "features");
    uint64_t protocol = get(GET_PROTOCOL_FEATURES) & (P_MQ | P_CONFIG | P_LOG_SHMFD);
    set(SET_PROTOCOL_FEATURES, protocol);
    struct message m = { 0 };
    send_message(&m, SET_OWNER, 0, -1);
    m = (struct message){ .body.config = { 0, 60, 0, { 0 } } };
    send_message(&m, GET_CONFIG, 12 + 60, -1);
    receive(&m);
    uint64_t capacity;
    memcpy(&capacity, m.body.config.bytes, 8);
    uint64_t places = capacity * 512 / bytes;
    need(places > 0, "capacity");

    m = (struct message){ .body.table = { 1, 0, 0, MEMORY, (uint64_t)memory, 0 } };
    send_message(&m, SET_MEM_TABLE, 40, fd);
    if (log) {
        need((protocol & P_LOG_SHMFD) != 0, "LOG_SHMFD");
        size_t size = MEMORY / 4096 / 8;
        m = (struct message){ .body.log = { size, 0 } };
        send_message(&m, SET_LOG_BASE, 16, memfd("log", size));
        receive(&m);
        features |= 1ull << VHOST_F_LOG_ALL;
    }

    set(SET_FEATURES, features);
    struct vring ring;
    vring_init(&ring, ENTRIES, memory, 4096);
    set_state(SET_VRING_NUM, ENTRIES);
    set_state(SET_VRING_BASE, 0);
    m = (struct message){ .body.address = { 0, 0, (uint64_t)ring.desc, (uint64_t)ring.used, (uint64_t)ring.avail, 0 } };
    send_message(&m, SET_VRING_ADDR, 40, -1);
    int kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    m = (struct message){ 0 };
    send_message(&m, SET_VRING_CALL, 8, call);
    m = (struct message){ 0 };
    send_message(&m, SET_VRING_KICK, 8, kick);
    set_state(SET_VRING_ENABLE, 1);

    for (unsigned i = 0; i < depth; i++) {
        uint64_t header = HEADERS + i * 32ul;
        ring.desc[3 * i] = (struct vring_desc){ header, 16, VRING_DESC_F_NEXT, (uint16_t)(3 * i + 1) };
        ring.desc[3 * i + 1] = (struct vring_desc){ BUFFERS + i * bytes, (uint32_t)bytes, VRING_DESC_F_NEXT | (writes ? 0 : VRING_DESC_F_WRITE), (uint16_t)(3 * i + 2) };
        ring.desc[3 * i + 2] = (struct vring_desc){ header + 16, 1, VRING_DESC_F_WRITE, 0 };
    }

    uint64_t random = 1, done = 0, measured = 0;
    uint16_t available = 0, used = 0, kicked = 0;
    unsigned waiting[ENTRIES];
    unsigned ready = depth;
    for (unsigned i = 0; i < depth; i++) waiting[i] = i;
    double start = now(), begin = 0, end = 0;
    while (end < start + seconds + 0.2) {
        while (ready > 0) {
            unsigned i = waiting[--ready];
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            struct virtio_blk_outhdr *header = (void *)(memory + HEADERS + i * 32ul);
            *header = (struct virtio_blk_outhdr){ .type = writes ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, .sector = (random >> 33) % places * (bytes / 512) };
            memory[HEADERS + i * 32ul + 16] = 0xff;
            ring.avail->ring[available++ % ENTRIES] = (uint16_t)(3 * i);
        }

        __atomic_store_n(&ring.avail->idx, available, __ATOMIC_RELEASE);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (vring_need_event(__atomic_load_n(&vring_avail_event(&ring), __ATOMIC_ACQUIRE), available, kicked)) eventfd_write(kick, 1);
        kicked = available;
        while (used == __atomic_load_n(&ring.used->idx, __ATOMIC_ACQUIRE)) {
            vring_used_event(&ring) = used;
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (used != __atomic_load_n(&ring.used->idx, __ATOMIC_ACQUIRE)) break;
            struct pollfd waits[] = { { call, POLLIN, 0 }, { sock, POLLIN, 0 } };
            need(poll(waits, 2, 10000) > 0 && waits[1].revents == 0, "the back end");
            eventfd_t value;
            eventfd_read(call, &value);
        }

        while (used != __atomic_load_n(&ring.used->idx, __ATOMIC_ACQUIRE)) {
            unsigned i = ring.used->ring[used++ % ENTRIES].id / 3;
            need(i < depth && memory[HEADERS + i * 32ul + 16] == 0, "a request");
            waiting[ready++] = i;
            done++;
        }

        end = now();
        /* The first fifth of a second does not count. */
        if (begin == 0 && end >= start + 0.2) {
            begin = end;
            measured = done;
        }
    }

    printf("{\"requests_s\":%.1f}\n", (double)(done - measured) / (end - begin));
    return 0;
}
