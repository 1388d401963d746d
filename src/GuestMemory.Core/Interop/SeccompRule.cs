namespace GuestMemory.Core.Interop;

/// <summary>What becomes of a system call.</summary>
/// <param name="Call">Its name.</param>
/// <param name="Action">SECCOMP_RET_ALLOW, or what else where every check holds.</param>
/// <param name="Checks">Conditions on its arguments.</param>
internal sealed record SeccompRule(string Call, uint Action, params SeccompCheck[] Checks)
{
    /// <summary>What becomes of it where a check does not hold.</summary>
    public uint Otherwise { get; init; } = Seccomp.SECCOMP_RET_KILL_PROCESS;

    /// <summary>A call that is made, where every check holds.</summary>
    public static SeccompRule Allow(string call, params SeccompCheck[] checks) => new(call, Seccomp.SECCOMP_RET_ALLOW, checks);

    /// <summary>A call that fails with an error number.</summary>
    public static SeccompRule Fail(string call, int error) => new(call, Seccomp.SECCOMP_RET_ERRNO | (uint)error);
}
