namespace GuestMemory.Core.Interop;

/// <summary>A user of this host, with the groups that a login of the user has.</summary>
/// <param name="User">The user's number.</param>
/// <param name="Group">That of the primary group.</param>
/// <param name="Groups">Those of all groups, the primary one among them.</param>
internal sealed record UserAccount(uint User, uint Group, uint[] Groups);
