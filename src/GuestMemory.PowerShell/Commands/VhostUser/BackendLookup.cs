using GuestMemory.Core;
using GuestMemory.Core.VhostUser;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Back ends by the name that was typed.</summary>
internal static class BackendLookup
{
    /// <exception cref="GuestMemoryException">BackendNotFound: a name without wildcards names none.</exception>
    public static VhostUserDisk[] ByName(string name) =>
        NameLookup.Find(Session.Backends, static backend => backend.Name, name, GuestMemoryError.BackendNotFound, "back end", "Get-VhostUserBackend");
}
