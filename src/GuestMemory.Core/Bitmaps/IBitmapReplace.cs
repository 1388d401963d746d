namespace GuestMemory.Core;

/// <summary>
/// A bitmap that marks in another one, which is replaced at run time while other threads mark (vhost-user-backend's BitmapReplace).
/// vhost-user's SET_LOG_BASE replaces the bitmaps of all regions; a region without such a bitmap cannot take part in live migration.
/// </summary>
/// <typeparam name="TInner">What it marks in (upstream: InnerBitmap).</typeparam>
public interface IBitmapReplace<in TInner> : IBitmap
    where TInner : IBitmap
{
    /// <summary>Marks in <paramref name="bitmap"/> from now on, also through slices that were taken before; null: nowhere.</summary>
    void Replace(TInner? bitmap);
}
