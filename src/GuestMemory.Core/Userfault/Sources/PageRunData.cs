namespace GuestMemory.Core.Userfault;

/// <summary>Bytes of a source that lie together: an address, or null where all of them are zero.</summary>
internal readonly unsafe struct PageRunData(byte* data, ulong length)
{
    public byte* Data { get; } = data;

    public ulong Length { get; } = length;
}
