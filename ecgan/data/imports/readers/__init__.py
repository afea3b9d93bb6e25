"""One reader for each annotation tool, and one for the forms that Datumaro reads.

COCO and CVAT are read here although Datumaro knows them: of COCO it drops the class of category 0,
with which Label Studio begins, turns the order of annotations around and refuses those without
``iscrowd``; of CVAT it passes over ellipses and cuboids without a word. YOLO's outlines and the
JSON of LabelMe and Label Studio it does not know.
"""
