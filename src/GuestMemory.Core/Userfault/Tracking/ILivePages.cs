namespace GuestMemory.Core.Userfault;

/// <summary>What the memory of a VM that runs is read by while it is exported. Safe from any thread.</summary>
internal interface ILivePages
{
    /// <summary>Where the memory lies, and at which offset each region stands.</summary>
    IReadOnlyList<GuestRegionUffdMapping> Mappings { get; }

    /// <summary>Whether the memory has the page at an offset.</summary>
    bool HasData(ulong offset);

    /// <summary>How many bytes the memory has from an offset on, without a gap, up to a length.</summary>
    ulong DataLength(ulong offset, ulong length);

    /// <summary>Whether a page is zero where the memory does not have it; any other is then the image's.</summary>
    bool IsRemoved(ulong page);

    /// <summary>Whether a page has come.</summary>
    bool HasCome(ulong page);

    /// <summary>Whether all that was read of the VM's events is on record; false where a read that had begun goes on: ask again.</summary>
    bool AreEventsNoted();

    /// <summary>Copies what the memory has, and zeros where it has nothing; returns how many bytes came, fewer than asked only with an error number.</summary>
    int ReadData(ulong offset, Span<byte> buffer, out int error);

    /// <summary>Copies bytes of the image, whether the VM has them or others; fewer than asked only with an error number.</summary>
    int ReadImage(ulong offset, Span<byte> buffer, out int error);
}
