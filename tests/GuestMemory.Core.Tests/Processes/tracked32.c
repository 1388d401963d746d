/* A 32-bit process that waits: built without a C library, which few machines have for it. */
#ifdef __i386__
void _start(void)
{
    for (;;) __asm__ volatile("int $0x80" : : "a"(29 /* pause */) : "memory");
}
#else
/* Other machines have no such process; all programs of the tests are compiled for them. */
int main(void)
{
    return 1;
}
#endif
