using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Services by the path that was typed.</summary>
internal static class ServiceLookup
{
    /// <exception cref="GuestMemoryException">ServiceNotFound: a path without wildcards names none.</exception>
    public static VmMemoryService[] BySocket(string path, Func<string, string> resolve)
    {
        var resolved = resolve(path);
        VmMemoryService[] all = [.. Session.Services];
        VmMemoryService[] found = [.. all.Where(service => service.SocketPath == resolved)];
        if (found.Length > 0) return found;
        if (!WildcardPattern.ContainsWildcardCharacters(path))
            throw new GuestMemoryException(GuestMemoryError.ServiceNotFound, $"No service of this shell listens at {resolved}. 'Get-VmMemoryService' lists them; with -Id it finds one by its number.");
        // As it was typed, *.sock finds those of every directory; vm* is one of this directory.
        WildcardPattern[] patterns = [WildcardPattern.Get(path, WildcardOptions.None), WildcardPattern.Get(resolved, WildcardOptions.None)];
        return [.. all.Where(service => service.SocketPath is { } socket && Array.Exists(patterns, pattern => pattern.IsMatch(socket)))];
    }
}
