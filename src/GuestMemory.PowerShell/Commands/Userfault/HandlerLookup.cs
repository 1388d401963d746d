using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Handlers by the path that was typed.</summary>
internal static class HandlerLookup
{
    /// <exception cref="GuestMemoryException">HandlerNotFound: a path without wildcards names none.</exception>
    public static UffdHandler[] BySocket(string path, Func<string, string> resolve)
    {
        var resolved = resolve(path);
        UffdHandler[] all = [.. Session.Handlers];
        UffdHandler[] found = [.. all.Where(handler => handler.SocketPath == resolved || (handler.SocketPath is null && Sockets(handler).Contains(resolved, StringComparer.Ordinal)))];
        if (found.Length > 0) return found;
        if (!WildcardPattern.ContainsWildcardCharacters(path))
            throw new GuestMemoryException(GuestMemoryError.HandlerNotFound, $"No handler of this user listens at {resolved}. 'Get-UffdHandler' lists them; with -Id it finds one by its number.");
        // As it was typed, *.sock finds those of every directory; vm* is one of this directory.
        WildcardPattern[] patterns = [WildcardPattern.Get(path, WildcardOptions.None), WildcardPattern.Get(resolved, WildcardOptions.None)];
        return [.. all.Where(handler => Array.Exists(patterns, pattern => Sockets(handler).Any(pattern.IsMatch)))];
    }

    /// <summary>Where a handler listens: one path for each image.</summary>
    private static IEnumerable<string> Sockets(UffdHandler handler) => handler.Images.Select(static image => image.SocketPath);
}
