using FsCheck.Xunit;

namespace GuestMemory.Core.Tests;

/// <summary>
/// A property that is checked with so many random cases, which the type makes. A failure is made as short as it can be, and names
/// its seed: the same case is checked again under GUESTMEMORY_SEED.
/// </summary>
#pragma warning disable xUnit3003 // Its base class takes no source information.
public sealed class ModelPropertyAttribute : PropertyAttribute
#pragma warning restore xUnit3003
{
    public ModelPropertyAttribute(int cases, Type arbitrary)
    {
        MaxTest = cases;
        Arbitrary = [arbitrary];
        QuietOnSuccess = true;
        if (Stress.Replay is { } replay) Replay = replay;
    }
}
