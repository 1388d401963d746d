namespace GuestMemory.Core.Tests;

/// <summary>How a VM of a handler is called.</summary>
public sealed class VmNameTests
{
    private const string Own = "0::/system.slice/uffd.service\n";

    [Theory]
    [InlineData("0::/system.slice/web.service\n", "web")]
    [InlineData("0::/system.slice/system-firecracker.slice/firecracker@web.service\n", "web")]
    [InlineData("0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope\n", "machine-qemu-1-web")]
    [InlineData("0::/machine.slice/web.scope/vcpu0\n", "web")]
    [InlineData("0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n", "web")]
    // Firecracker's jailer.
    [InlineData("0::/firecracker/vm-42\n", "vm-42")]
    [InlineData("12:cpuset:/firecracker/7\n1:name=systemd:/system.slice/web.service\n0::/\n", "web")]
    [InlineData("0::/firecracker/42\n", "vm-42")]
    [InlineData("0::/system.slice/a b;c.service\n", "a-b-c")]
    [InlineData("0::/system.slice/firecracker@.service\n", "firecracker")]
    // A session, a slice and the root say nothing of a VM, nor does the group that the handler is in.
    [InlineData("0::/user.slice/user-0.slice/session-3.scope\n", null)]
    [InlineData("0::/user.slice/user-1000.slice/user@1000.service\n", null)]
    [InlineData("0::/init.scope\n", null)]
    [InlineData("0::/system.slice\n", null)]
    [InlineData("0::/\n", null)]
    [InlineData(Own, null)]
    [InlineData("", null)]
    [InlineData("no such file", null)]
    public void AControlGroupNamesItsVm(string cgroup, string? name) => Assert.Equal(name, UffdVmName.OfCgroup(cgroup, Own));

    [Theory]
    [InlineData("web", true)]
    [InlineData("Web_1.a-2", true)]
    [InlineData("1a", true)]
    [InlineData("", false)]
    [InlineData("17", false)]
    [InlineData("-web", false)]
    [InlineData("web.", false)]
    [InlineData("w*b", false)]
    [InlineData("w b", false)]
    [InlineData("wéb", false)]
    [InlineData("web\n", false)]
    public void ANameIsPlain(string name, bool isOne)
    {
        var error = Record.Exception(() => UffdVmName.Check(name));
        if (isOne) Assert.Null(error);
        else Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.IsType<GuestMemoryException>(error).Error);
    }

    [Fact]
    public void ANameHas64CharactersAtMost()
    {
        UffdVmName.Check(new string('a', 64));
        Assert.Equal(GuestMemoryError.ValueNotSupported, Assert.Throws<GuestMemoryException>(() => UffdVmName.Check(new string('a', 65))).Error);
        Assert.Null(UffdVmName.Clean(new string('1', 64)));
        Assert.Equal($"{new string('a', 62)}-2", UffdVmName.Unique(new string('a', 64), [new string('A', 64)]));
    }

    [Fact]
    public void NoTwoVmsHaveOneName()
    {
        Assert.Equal("web", UffdVmName.Unique("web", ["db"]));
        Assert.Equal("web-2", UffdVmName.Unique("web", ["WEB"]));
        Assert.Equal("web-4", UffdVmName.Unique("web", ["web", "web-2", "web-3"]));
        // This process and its child are in one group.
        Assert.Equal("h-7", UffdVmName.Choose(Environment.ProcessId, "/run/h.sock", 7, []));
        Assert.Equal("vm-7", UffdVmName.Choose(-1, "/run/**.sock", 7, []));
    }

    /// <summary>Whatever a control group is called, the name is one that <see cref="UffdVmName.Check"/> takes.</summary>
    [Fact]
    public void WhateverAGroupIsCalled()
    {
        string[] pieces = ["a", "0", "7", "-", ".", "_", "@", "/", "\\", "\\x2d", "\\xff", "\\xg0", ".service", ".scope", ".slice", "session-", "user@", " ", "\n", ":", "0::/", "*", "\"", "\u00e9", "\0", new string('z', 70)];
        var random = new Random(1);
        for (var i = 0; i < 20_000; i++)
        {
            var text = string.Concat(Enumerable.Range(0, random.Next(1, 9)).Select(_ => pieces[random.Next(pieces.Length)]));
            foreach (var name in new[] { UffdVmName.OfCgroup(text, ""), UffdVmName.OfCgroup($"0::/a.slice/{text}.service", ""), UffdVmName.Clean(text) })
            {
                if (name is not null) UffdVmName.Check(name);
            }
        }
    }
}
