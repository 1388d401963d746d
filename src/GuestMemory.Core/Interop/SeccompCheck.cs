namespace GuestMemory.Core.Interop;

/// <summary>A condition on the lower 32 bits of an argument of a system call: those of the mask are one of some values.</summary>
/// <param name="Argument">Which argument; 0 is the first.</param>
/// <param name="Mask">The bits that are looked at.</param>
/// <param name="Values">What they may be.</param>
internal sealed record SeccompCheck(int Argument, uint Mask, params uint[] Values)
{
    /// <summary>The argument is one of some values.</summary>
    public static SeccompCheck IsOneOf(int argument, params uint[] values) => new(argument, uint.MaxValue, values);

    /// <summary>The argument has none of some bits.</summary>
    public static SeccompCheck HasNone(int argument, uint bits) => new(argument, bits, 0);

    /// <summary>The argument has all of some bits.</summary>
    public static SeccompCheck HasAll(int argument, uint bits) => new(argument, bits, bits);
}
