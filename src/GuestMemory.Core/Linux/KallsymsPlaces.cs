namespace GuestMemory.Core.Linux;

/// <summary>Where the tables of a kernel's symbols lie, as guest physical addresses (scripts/kallsyms.c).</summary>
/// <param name="Count">The number of symbols, 32 bits (kallsyms_num_syms).</param>
/// <param name="Names">The compressed names.</param>
/// <param name="TokenTable">The texts of the 256 tokens.</param>
/// <param name="TokenIndex">Where in that table each begins, 16 bits.</param>
/// <param name="Offsets">The addresses, 32 bits each.</param>
/// <param name="RelativeBase">What these are relative to; null: to the place where each stands (Linux 7.0).</param>
/// <param name="Delta">What makes a virtual address of a guest physical one of the kernel's image; used where there is no base.</param>
internal readonly record struct KallsymsPlaces(ulong Count, ulong Names, ulong TokenTable, ulong TokenIndex, ulong Offsets, ulong? RelativeBase, ulong Delta);
