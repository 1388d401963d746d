namespace GuestMemory.Core.Userfault;

/// <summary>What a file of an image holds.</summary>
internal enum ImagePart
{
    /// <summary>The memory, or the changes of a layer.</summary>
    Memory,

    /// <summary>Which pages the layer before it has; see <see cref="Images.DirtySidecar"/>.</summary>
    Map,

    /// <summary>A copy of the pages that are brought in first; see <see cref="WorkingSetSource"/>.</summary>
    WorkingSet,
}
