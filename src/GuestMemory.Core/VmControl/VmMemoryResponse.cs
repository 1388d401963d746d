using System.Text.Json.Serialization;

namespace GuestMemory.Core.VmControl;

/// <summary>The response to a request (crosvm's <c>VmMemoryResponse</c>).</summary>
public abstract record VmMemoryResponse
{
    private VmMemoryResponse()
    {
    }

    /// <summary>Which one it is: Ok, RegisterMemory or Err.</summary>
    [JsonIgnore]
    public string Response => GetType().Name;

    /// <summary>Success.</summary>
    public sealed record Ok : VmMemoryResponse
    {
        /// <summary>The only instance.</summary>
        public static Ok Instance { get; } = new();

        /// <summary>Its name.</summary>
        public override string ToString() => nameof(Ok);
    }

    /// <summary>Memory was registered.</summary>
    /// <param name="RegionId">The id by which it is unregistered: the guest physical address of its first byte.</param>
    /// <param name="Slot">The VM's slot that it is in.</param>
    public sealed record RegisterMemory(ulong RegionId, uint Slot) : VmMemoryResponse;

    /// <summary>Failure.</summary>
    /// <param name="Messages">The chain: the root cause first, then the context of each layer, the outermost last; never empty.</param>
    public sealed record Err(IReadOnlyList<string> Messages) : VmMemoryResponse
    {
        private const int MaxLayers = 32;

        /// <summary>The chain: the root cause first, then the context of each layer, the outermost last; never empty.</summary>
        public IReadOnlyList<string> Messages { get; } = Messages as string[] ?? Messages.ToArray();   // A script can index an array.

        /// <summary>The last message: the outermost context.</summary>
        [JsonIgnore]
        public string Outermost => Messages[^1];

        /// <summary>Equal messages in equal order.</summary>
        public bool Equals(Err? other) => other is not null && Messages.SequenceEqual(other.Messages, StringComparer.Ordinal);

        /// <inheritdoc/>
        public override int GetHashCode() => Outermost.GetHashCode(StringComparison.Ordinal);

        /// <summary>The chain as one line, outermost first.</summary>
        public string Chain => string.Join(": ", Messages.Reverse());

        /// <summary>The error as an exception: its message is the chain, and each layer, of the 32 outermost, is the inner exception of the one around it.</summary>
        public GuestMemoryException ToException()
        {
            GuestMemoryException? inner = null;
            // Inner exceptions are shown by recursion; a service that names a hundred thousand layers would end the process.
            foreach (var message in Messages.Take(Messages.Count - 1).TakeLast(MaxLayers)) inner = new GuestMemoryException(GuestMemoryError.RequestFailed, message, inner);
            return new GuestMemoryException(GuestMemoryError.RequestFailed, Chain, inner);
        }

        /// <summary>As upstream shows it: "Vm memory response error: " and the outermost message.</summary>
        public override string ToString() => $"Vm memory response error: {Outermost}";
    }
}
