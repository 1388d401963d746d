namespace GuestMemory.Core.VmControl;

/// <summary>The virtio-iommu's response (crosvm's <c>VirtioIOMMUResponse</c>). Its text is that of upstream's Debug, which stands in error messages.</summary>
public abstract record VirtioIommuResponse
{
    private VirtioIommuResponse()
    {
    }

    /// <summary>It was done.</summary>
    public sealed record Ok : VirtioIommuResponse
    {
        /// <summary>The one there is.</summary>
        public static Ok Instance { get; } = new();

        /// <inheritdoc/>
        public override string ToString() => "Ok";
    }

    /// <summary>A system call failed, in the device or while sending or receiving.</summary>
    /// <param name="ErrorCode">The error number.</param>
    public sealed record Err(int ErrorCode) : VirtioIommuResponse
    {
        /// <inheritdoc/>
        public override string ToString() => $"Err(Error({ErrorCode}))";
    }

    /// <summary>The result of a command about devices.</summary>
    /// <param name="Result">The result.</param>
    public sealed record VfioResponse(VirtioIommuVfioResult Result) : VirtioIommuResponse
    {
        /// <inheritdoc/>
        public override string ToString() => $"VfioResponse({Result})";
    }
}
