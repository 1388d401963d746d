namespace GuestMemory.Core.Kvm;

/// <summary>The address whose stores signal an eventfd (crosvm's IoEventAddress): a port, or a guest physical address.</summary>
/// <param name="IsPio">Whether it is an I/O port of x86.</param>
/// <param name="Address">The port or the address.</param>
public readonly record struct IoEventAddress(bool IsPio, ulong Address)
{
    /// <summary>An I/O port.</summary>
    public static IoEventAddress Pio(ulong port) => new(IsPio: true, port);

    /// <summary>A guest physical address.</summary>
    public static IoEventAddress Mmio(GuestAddress address) => new(IsPio: false, address.Value);

    /// <inheritdoc/>
    public override string ToString() => IsPio ? $"port 0x{Address:x}" : $"guest address 0x{Address:x}";
}
