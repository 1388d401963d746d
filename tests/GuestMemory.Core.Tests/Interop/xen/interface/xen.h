/*
 * The types of Xen's public interface that the kernel's xen/privcmd.h and xen/gntdev.h use. A distribution installs those two, but not
 * this one.
 */
#include <stdint.h>

typedef uint16_t domid_t;
typedef uint32_t grant_ref_t;
#ifdef __aarch64__
typedef uint64_t xen_pfn_t;
#else
typedef unsigned long xen_pfn_t;
#endif
