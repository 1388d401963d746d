/*
 * The other side of the tests on a real Xen, in domain 0: pages that it grants to domain 0 itself, or a domain that never runs.
 *
 *   peer grant COUNT [ro]        grants so many pages, each beginning with its number as 64 bits
 *   peer domain pv|hvm COUNT     makes a paused domain with so many pages; of an HVM domain the first half from 0, the others from 16 MiB on
 *
 * Prints "ready", the domain, and the references or frames. Then each line of the standard input is done, and answered by a line:
 *
 *   read PAGE OFFSET             64 bits of a granted page, in hexadecimal
 *   destroy                      ends the domain
 *
 * At the end of the input it takes back what it made.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xenctrl.h>

/* xen/gntalloc.h of the kernel, whose folder the toolstack's headers hide. */
struct gntalloc_alloc {
    uint16_t domid;
    uint16_t flags;
    uint32_t count;
    uint64_t index;
    uint32_t refs[1];
};

struct gntalloc_dealloc {
    uint64_t index;
    uint32_t count;
};

#define GNTALLOC_ALLOC _IOC(_IOC_NONE, 'G', 5, sizeof(struct gntalloc_alloc))
#define GNTALLOC_DEALLOC _IOC(_IOC_NONE, 'G', 6, sizeof(struct gntalloc_dealloc))

static const size_t page = 4096;

static void need(int condition, const char *what)
{
    if (condition) return;
    fprintf(stderr, "peer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void answer(const char *format, uint64_t number)
{
    printf(format, number);
    fflush(stdout);
}

static void grant(unsigned count, int writable)
{
    int device = open("/dev/xen/gntalloc", O_RDWR);
    need(device >= 0, "/dev/xen/gntalloc");
    struct gntalloc_alloc *request = calloc(1, sizeof *request + count * sizeof request->refs[0]);
    request->flags = writable ? 1 : 0;
    request->count = count;
    need(ioctl(device, GNTALLOC_ALLOC, request) == 0, "granting");
    char *memory = mmap(NULL, count * page, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)request->index);
    need(memory != MAP_FAILED, "mapping what is granted");
    for (uint64_t i = 0; i < count; i++) memcpy(memory + i * page, &i, sizeof i);
    printf("ready 0");
    for (unsigned i = 0; i < count; i++) printf(" %" PRIu32, request->refs[i]);
    answer("\n", 0);

    char line[128];
    while (fgets(line, sizeof line, stdin)) {
        uint64_t number, at, value;
        if (sscanf(line, "read %" SCNu64 " %" SCNu64, &number, &at) != 2 || number >= count || at > page - sizeof value) {
            answer("what?\n", 0);
            continue;
        }
        memcpy(&value, memory + number * page + at, sizeof value);
        answer("%" PRIx64 "\n", value);
    }

    munmap(memory, count * page);
    struct gntalloc_dealloc done = { .index = request->index, .count = count };
    need(ioctl(device, GNTALLOC_DEALLOC, &done) == 0, "taking back what was granted");
}

static void domain(int hvm, unsigned count)
{
    xc_interface *xen = xc_interface_open(NULL, NULL, 0);
    need(xen != NULL, "xc_interface_open");
    struct xen_domctl_createdomain config = {
        .flags = hvm ? XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap : 0,
        .max_vcpus = 1,
        .max_evtchn_port = -1,
        .max_grant_frames = -1,
        .max_maptrack_frames = -1,
        .grant_opts = XEN_DOMCTL_GRANT_version(2),
        .arch = { .emulation_flags = hvm ? XEN_X86_EMU_LAPIC : 0 },
    };
    for (unsigned i = 0; i < sizeof config.handle; i++) config.handle[i] = (uint8_t)(i + 1);
    uint32_t id = 0;
    need(xc_domain_create(xen, &id, &config) == 0, "xc_domain_create");
    need(xc_domain_max_vcpus(xen, id, 1) == 0, "xc_domain_max_vcpus");
    need(xc_domain_setmaxmem(xen, id, count * 4 + 4096) == 0, "xc_domain_setmaxmem");
    if (hvm) {
        unsigned int megabytes = 4;
        need(xc_shadow_control(xen, id, XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION, &megabytes, 0) >= 0, "xc_shadow_control");
    }
    xen_pfn_t *frames = calloc(count, sizeof *frames);
    for (unsigned i = 0; i < count; i++) frames[i] = hvm && i >= count / 2 ? 0x1000 + i - count / 2 : i;
    need(xc_domain_populate_physmap_exact(xen, id, count, 0, 0, frames) == 0, "xc_domain_populate_physmap_exact");
    printf("ready %" PRIu32, id);
    for (unsigned i = 0; i < count; i++) printf(" %" PRIu64, (uint64_t)frames[i]);
    answer("\n", 0);

    char line[128];
    int alive = 1;
    while (fgets(line, sizeof line, stdin)) {
        if (strcmp(line, "destroy\n") != 0) {
            answer("what?\n", 0);
            continue;
        }
        need(xc_domain_destroy(xen, id) == 0, "xc_domain_destroy");
        alive = 0;
        answer("destroyed\n", 0);
    }

    if (alive) xc_domain_destroy(xen, id);
    xc_interface_close(xen);
}

int main(int count, char **arguments)
{
    if (count >= 3 && strcmp(arguments[1], "grant") == 0) grant((unsigned)atoi(arguments[2]), count < 4);
    else if (count == 4 && strcmp(arguments[1], "domain") == 0) domain(strcmp(arguments[2], "hvm") == 0, (unsigned)atoi(arguments[3]));
    else return 2;
    return 0;
}
