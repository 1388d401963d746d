namespace GuestMemory.Core.Images;

/// <summary>How an image is opened.</summary>
public sealed record ImageOpenOptions
{
    /// <summary>Its format; null: what its first bytes say, and Raw where they say nothing.</summary>
    public ImageFormat? Format { get; init; }

    /// <summary>Where its memory belongs, for formats that do not say so; null: as in a microVM on a machine like this one, or as the file beside it says.</summary>
    public ImageLayout? Layout { get; init; }

    /// <summary>Checks the digest beside it (FILE.sha256, as sha256sum writes it), and the checksums of its format.</summary>
    public bool Verify { get; init; }

    /// <summary>What the region is called; several are called NAME-0, NAME-1 and so on.</summary>
    public string Name { get; init; } = "image";

    /// <summary>Told how far a verification has come: the bytes done, and how many there are.</summary>
    public Action<ulong, ulong>? Progress { get; init; }

    /// <summary>Told what the user of the image should know: pages that its writer left out.</summary>
    public Action<string>? Warning { get; init; }
}
