namespace GuestMemory.Core.Linux;

/// <summary>A symbol of a guest's kernel, as /proc/kallsyms has it.</summary>
/// <param name="Name">The name; several symbols may have the same.</param>
/// <param name="Address">The virtual address; for a variable of each processor (type A, or below 2^32) its offset.</param>
/// <param name="Type">The letter of nm(1): T or t is code, D, d, R or r data, B or b zeros; lower case where it is local to its file.</param>
public sealed record GuestSymbol(string Name, ulong Address, char Type);
