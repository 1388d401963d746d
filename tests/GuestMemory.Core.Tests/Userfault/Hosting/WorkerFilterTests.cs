using System.Diagnostics;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>The filter of workers, entered by a process that then makes one system call.</summary>
public sealed class WorkerFilterTests(FilteredProgram filtered) : IClassFixture<FilteredProgram>
{
    private const int Killed = 128 + Pidfd.SIGSYS;

    /// <summary>What serving does is done, also by the program's own runtime.</summary>
    [CompilerTheory]
    [InlineData("write")]
    [InlineData("thread")]
    [InlineData("memory")]
    [InlineData("own-memory")]
    [InlineData("own-signal")]
    [InlineData("name")]
    [InlineData("own-limit")]
    [InlineData("own-status")]
    public void WhatServingMakesIsMade(string call)
    {
        Assert.Equal(0, Make(call, isNative: true));
        Assert.Equal(0, Make(call, isNative: false));
    }

    /// <summary>A call of the right kind reaches the kernel, which knows that the descriptor is no userfaultfd.</summary>
    [CompilerFact]
    public void TheIoctlsOfAUserfaultfdReachTheKernel() => Assert.Equal(Errno.ENOTTY, Make("fill", isNative: true));

    [CompilerTheory]
    [InlineData("socket")]
    [InlineData("connect")]
    [InlineData("bind")]
    [InlineData("accept")]
    [InlineData("execve")]
    [InlineData("execveat")]
    [InlineData("fork")]
    [InlineData("vfork")]
    [InlineData("namespace")]
    [InlineData("unshare")]
    [InlineData("new-userfaultfd")]
    [InlineData("kill")]
    [InlineData("other-signal")]
    [InlineData("pidfd-open")]
    [InlineData("pidfd-stop")]
    [InlineData("ptrace")]
    [InlineData("other-memory")]
    [InlineData("process-vm-writev")]
    [InlineData("mount")]
    [InlineData("chmod")]
    [InlineData("unlink")]
    [InlineData("setuid")]
    [InlineData("capset")]
    [InlineData("seccomp")]
    [InlineData("bpf")]
    [InlineData("io-uring")]
    [InlineData("keyctl")]
    [InlineData("set-limit")]
    [InlineData("limit-of-another")]
    [InlineData("memfd")]
    public void WhatServingNeverMakesEndsTheProcess(string call)
    {
        Assert.Equal(Killed, Make(call, isNative: true));
        Assert.Equal(Killed, Make(call, isNative: false));
    }

    /// <summary>The runtime that compiles needs these two, and a program that was compiled ahead does not.</summary>
    [CompilerTheory]
    [InlineData("map-to-execute")]
    [InlineData("protect-to-execute")]
    public void ANativeProgramMakesNoCode(string call)
    {
        Assert.Equal(Killed, Make(call, isNative: true));
        Assert.Equal(0, Make(call, isNative: false));
    }

    [CompilerTheory]
    [InlineData("terminal", Killed, Errno.ENOTTY)]
    [InlineData("open", Errno.ENOENT, 0)]
    [InlineData("open-to-write", Errno.ENOENT, Errno.EACCES)]
    [InlineData("create", Errno.ENOENT, Errno.EACCES)]
    [InlineData("status", Errno.ENOENT, 0)]
    [InlineData("clone3", Errno.ENOSYS, Errno.ENOSYS)]
    [InlineData("dumpable", Errno.EINVAL, Errno.EINVAL)]
    public void WhatARuntimeTriesFails(string call, int native, int compiling)
    {
        Assert.Equal(native, Make(call, isNative: true));
        Assert.Equal(compiling, Make(call, isNative: false));
    }

    /// <summary>Numbers of another table would be other calls.</summary>
    [CompilerTheory]
    [InlineData("x32")]
    [InlineData("32-bit")]
    public void AnotherAbiEndsTheProcess(string call)
    {
        Assert.SkipUnless(RuntimeInformation.ProcessArchitecture == Architecture.X64, "x86-64 alone has other ABIs");
        // A kernel without 32-bit processes ends it, too, in its own way.
        Assert.Contains(Make(call, isNative: true), call == "x32" ? [Killed] : new[] { Killed, 128 + 11 });
    }

    /// <summary>The filter as a kernel for either architecture runs it: every call does what its rule says, and no other is made.</summary>
    [Theory]
    [InlineData(Architecture.X64, Seccomp.AUDIT_ARCH_X86_64)]
    [InlineData(Architecture.Arm64, Seccomp.AUDIT_ARCH_AARCH64)]
    public void EveryNumberFindsItsRule(Architecture architecture, uint audit)
    {
        foreach (var isNative in new[] { true, false })
        {
            var rules = UffdHost.WorkerFilter.Rules(isNative, process: 4711).ToArray();
            var program = Seccomp.Assemble(rules, architecture);
            var byNumber = rules.Where(rule => SystemCalls.Number(rule.Call, architecture) >= 0).ToDictionary(rule => SystemCalls.Number(rule.Call, architecture));
            Assert.InRange(program.Length, byNumber.Count, 4096);
            for (var number = 0; number < 600; number++)
            {
                var hasRule = byNumber.TryGetValue(number, out var rule);
                // No argument has this value.
                const uint Wrong = 0x5a5a5a5a;
                var arguments = Enumerable.Repeat(Wrong, 6).ToArray();
                var expected = !hasRule ? Seccomp.SECCOMP_RET_KILL_PROCESS : rule!.Checks.All(check => check.Values.Contains(Wrong & check.Mask)) ? rule.Action : rule.Otherwise;
                Assert.Equal(expected, Run(program, audit, (uint)number, arguments));
                if (!hasRule) continue;
                foreach (var check in rule!.Checks) arguments[check.Argument] = (Wrong & ~check.Mask) | check.Values[^1];
                Assert.Equal(rule.Action, Run(program, audit, (uint)number, arguments));
            }

            Assert.Equal(Seccomp.SECCOMP_RET_KILL_PROCESS, Run(program, 0x40000003, 0, new uint[6]));
            Assert.Equal(Seccomp.SECCOMP_RET_KILL_PROCESS, Run(program, audit, 0x40000000, new uint[6]));
            Assert.Equal(Seccomp.SECCOMP_RET_KILL_PROCESS, Run(program, audit, uint.MaxValue, new uint[6]));
        }
    }

    /// <summary>What a filter says of a call, instruction by instruction.</summary>
    private static uint Run(SockFilter[] program, uint architecture, uint number, uint[] arguments)
    {
        uint accumulator = 0;
        for (var at = 0; ; at++)
        {
            var (code, k) = (program[at].code, program[at].k);
            switch (code)
            {
                case Seccomp.BPF_LD | Seccomp.BPF_W | Seccomp.BPF_ABS:
                    accumulator = k switch { 0 => number, 4 => architecture, _ => arguments[(k - 16) / 8] };
                    break;
                case Seccomp.BPF_ALU | Seccomp.BPF_AND | Seccomp.BPF_K:
                    accumulator &= k;
                    break;
                case Seccomp.BPF_JMP | Seccomp.BPF_JA:
                    at += (int)k;
                    break;
                case Seccomp.BPF_JMP | Seccomp.BPF_JEQ | Seccomp.BPF_K:
                    at += accumulator == k ? program[at].jt : program[at].jf;
                    break;
                case Seccomp.BPF_JMP | Seccomp.BPF_JGE | Seccomp.BPF_K:
                    at += accumulator >= k ? program[at].jt : program[at].jf;
                    break;
                case Seccomp.BPF_RET | Seccomp.BPF_K:
                    return k;
                default:
                    throw new InvalidOperationException($"instruction {at} has code 0x{code:x}");
            }
        }
    }

    /// <summary>Makes a call under the filter; the exit code, or 128 and the signal that ended the process.</summary>
    private int Make(string call, bool isNative)
    {
        using var process = Process.Start(new ProcessStartInfo(filtered.Path, [call]) { UseShellExecute = false, RedirectStandardInput = true, RedirectStandardOutput = true })!;
        var number = int.Parse(process.StandardOutput.ReadLine()!, System.Globalization.CultureInfo.InvariantCulture);
        var filter = MemoryMarshal.AsBytes<SockFilter>(Seccomp.Assemble(UffdHost.WorkerFilter.Rules(isNative, number), RuntimeInformation.ProcessArchitecture));
        var input = process.StandardInput.BaseStream;
        input.Write(BitConverter.GetBytes(filter.Length));
        input.Write(filter);
        input.Flush();
        Assert.True(process.WaitForExit(Host.Patience));
        return process.ExitCode;
    }
}
