/* A 32-bit process that waits: built without a C library, which few machines have for it. */
void _start(void)
{
    for (;;) __asm__ volatile("int $0x80" : : "a"(29 /* pause */) : "memory");
}
