using System.Diagnostics;
using Xunit;

namespace GuestMemory.Core.Tests;

public sealed class TestProcessTests
{
    /// <summary>A process may be gone between any two looks at it.</summary>
    [Fact]
    public void TheEndOfAProcessIsNoError()
    {
        for (var round = 0; round < 200; round++)
        {
            using var process = Process.Start("true");
            while (TestProcess.IsAlive(process.Id))
            {
            }
        }
    }
}
