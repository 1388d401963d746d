namespace GuestMemory.Core.Images;

/// <summary>A range of guest memory in an image that does not say itself where its memory belongs.</summary>
/// <param name="Address">The first guest physical address.</param>
/// <param name="Size">The length in bytes, at least 1.</param>
/// <param name="FileOffset">Where in the file it begins, in bytes; null: behind the range before it.</param>
public readonly record struct ImageRange(ulong Address, ulong Size, ulong? FileOffset = null);
