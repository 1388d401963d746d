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

    /// <summary>A system call failed, there or on the way.</summary>
    /// <param name="ErrorCode">The error number.</param>
    public sealed record Err(int ErrorCode) : VirtioIommuResponse
    {
        /// <inheritdoc/>
        public override string ToString() => $"Err(Error({ErrorCode}))";
    }

    /// <summary>What became of a command about devices.</summary>
    /// <param name="Result">What.</param>
    public sealed record VfioResponse(VirtioIommuVfioResult Result) : VirtioIommuResponse
    {
        /// <inheritdoc/>
        public override string ToString() => $"VfioResponse({Result})";
    }
}
